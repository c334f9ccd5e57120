"""Names of diagnoses in published data sets, and which of our classes (`labels.HAM_CLASSES`) each of them is.

The classes follow HAM10000 (Tschandl et al., arXiv 1803.10417, "Data Records"). A diagnosis that is none of them, such
as squamous cell carcinoma, keeps its name, so that scores by shared classes leave it out.
"""

import re

# Spellings in label tables instead of the abbreviation; case and hyphens do not matter.
SPELLINGS = {
    "MEL": ["melanoma"],
    "NV": ["nevus", "nevi", "naevus", "naevi", "melanocytic nevus", "melanocytic nevi", "melanocytic naevus"],
    "BCC": ["basal cell carcinoma"],
    "AKIEC": ["actinic keratosis", "actinic keratoses", "bowen's disease", "intraepithelial carcinoma"],
    "BKL": ["benign keratosis", "benign keratosis like lesion", "benign keratosis like lesions"],
    "DF": ["dermatofibroma", "dermatofibromas"],
    "VASC": ["vascular lesion", "vascular lesions"],
    "SK": ["seborrheic keratosis", "seborrheic keratoses"],
}

# Finer diagnoses and other abbreviations. Sources:
# - HAM10000: BKL has seborrheic keratosis, solar lentigo and lichen planus-like keratosis; AKIEC has actinic keratosis
#   and Bowen's disease, not invasive carcinoma; NV has all variants of nevi.
# - ISIC 2017 (Codella et al., arXiv 1710.05006): SK is seborrheic keratosis, a part of BKL.
# - PH2 (Mendonca et al., doi:10.1109/EMBC.2013.6610779): common and atypical nevi are benign melanocytic lesions.
# - derm7pt (Kawahara et al., doi:10.1109/JBHI.2018.2824327) groups its fine diagnoses into melanoma, nevus and others,
#   here taken over. Its lentigo does not say whether it is solar; lentigo, melanosis and miscellaneous are left out.
# - PAD-UFES-20 (Pacheco et al., arXiv 2007.00478): SCC has invasive carcinoma and Bowen's disease, so it is left out.
# - ISIC Archive, as in the nine-class folder set: "pigmented benign keratosis" is HAM10000's BKL there.
_FINER = {
    "MEL": ["melanoma (in situ)", "melanoma (less than 0.76 mm)", "melanoma (0.76 to 1.5 mm)",
            "melanoma (more than 1.5 mm)", "melanoma metastasis"],
    "NV": ["nev", "common nevus", "atypical nevus", "blue nevus", "clark nevus", "combined nevus", "congenital nevus",
           "dermal nevus", "recurrent nevus", "reed or spitz nevus"],
    "AKIEC": ["ack"],
    "BKL": ["sk", "sek", *SPELLINGS["SK"], "pigmented benign keratosis", "solar lentigo", "lichenoid keratosis",
            "lichen planus like keratosis"],
}  # fmt: skip
_OUR_CLASSES = {name: c for c in SPELLINGS if c != "SK" for name in [c.casefold(), *SPELLINGS[c], *_FINER.get(c, [])]}


def our_class(diagnosis: str) -> str:
    """The class of `labels.HAM_CLASSES` of a diagnosis, whatever its case and hyphens, or the diagnosis itself."""
    return _OUR_CLASSES.get(re.sub(r"[\s_-]+", " ", diagnosis.strip().casefold()), diagnosis)
