import shutil
import zipfile

import pandas as pd
import pytest
from factories import PH2_CODES, derm7pt, pad_ufes_20, ph2, write_image, write_lines, write_xlsx
from PIL import Image
from test_layouts import check_contract

from helpers.config import get_config
from helpers.data.audit import audit
from helpers.data.diagnoses import our_class
from helpers.data.external import DERM7PT_CLASSES, PAD_UFES_20_CLASSES, PH2_CLASSES
from helpers.data.files import DataError
from helpers.data.labels import HAM_CLASSES, ISIC2017_CLASSES
from helpers.data.layouts import open_dataset, read
from helpers.data.xlsx import read_xlsx


def names(dataset) -> dict[str, str]:
    """The class name of every image id; unlabeled ones are left out."""
    return dict(zip(dataset.table["image_id"], dataset.class_names(), strict=True))


EXPECTED_PH2 = {name: PH2_CLASSES[code] for name, code in PH2_CODES.items()}


# --------------------------------------------------------------------------------------------------------------- PH2


@pytest.mark.parametrize("removed", ["PH2_dataset.txt", "PH2_dataset.xlsx"])
def test_read_ph2_either_label_file_gives_labels_and_masks(tmp_path, removed):
    (ph2(tmp_path / "PH2Dataset") / removed).unlink()
    dataset = read(tmp_path)
    table = check_contract(dataset)
    assert dataset.name == "ph2" and dataset.classes == PH2_CLASSES and names(dataset) == EXPECTED_PH2
    assert table["mask_path"].str.endswith("_lesion.bmp").all() and table["split"].isna().all()
    assert dataset.problems == []


def test_read_ph2_masks_of_one_bit_are_read_by_the_audit(tmp_path):
    for path in list(ph2(tmp_path).rglob("*_lesion.bmp")):
        Image.open(path).convert("1").save(path)
    report = audit(read(tmp_path), progress=False)
    assert not report.unusable and not report.unreadable_masks and not report.empty_masks and not report.full_masks


def test_read_ph2_with_bom_other_case_and_a_missing_image(tmp_path):
    root = ph2(tmp_path)
    text = (root / "PH2_dataset.txt").read_text()
    (root / "PH2_dataset.txt").rename(root / "ph2_dataset.TXT").write_text(text, encoding="utf-8-sig")
    shutil.move(root / "PH2 Dataset images/IMD058", root / "gone")
    case = root / "PH2 Dataset images/IMD009"
    (case / "IMD009_Dermoscopic_Image").rename(case / "IMD009_dermoscopic_image")
    shutil.rmtree(case / "IMD009_lesion")
    dataset = read(root)
    assert names(dataset) == {name: label for name, label in EXPECTED_PH2.items() if name != "IMD058"}
    assert "1 (IMD058) are listed in the label file but have no image file" in dataset.problems
    assert "1 (IMD009) have no mask" in dataset.problems


def test_read_ph2_without_labels_keeps_images_and_masks(tmp_path):
    for path in list(ph2(tmp_path).glob("PH2_dataset.*")):
        path.unlink()
    dataset = read(tmp_path)
    assert dataset.table["label"].isna().all() and dataset.table["mask_path"].notna().all()
    assert any("add PH2_dataset.txt or PH2_dataset.xlsx" in problem for problem in dataset.problems)


def test_read_ph2_unknown_code_is_reported(tmp_path):
    path = ph2(tmp_path) / "PH2_dataset.txt"
    path.write_text(path.read_text().replace("                2 ||", "                7 ||", 1))
    dataset = read(tmp_path)
    assert dataset.class_names().isna().sum() == 1
    assert any("1 (IMD058) have an unknown label in PH2_dataset.txt ('7')" in problem for problem in dataset.problems)


@pytest.mark.parametrize("content", ["", "|| Name || Asymmetry ||\n|| IMD002 || 0 ||\n", "|| Name ||\n||"])
def test_read_ph2_text_of_another_kind_raises(tmp_path, content):
    (ph2(tmp_path) / "PH2_dataset.txt").write_text(content)
    with pytest.raises(DataError, match=r"PH2_dataset\.txt cannot be read .* expected columns Name and Clinical"):
        read(tmp_path)


def test_read_ph2_workbook_without_its_header_raises(tmp_path):
    (ph2(tmp_path) / "PH2_dataset.txt").unlink()
    write_xlsx(tmp_path / "PH2_dataset.xlsx", [["Image Name", "Melanoma"], ["IMD002", "X"]])
    with pytest.raises(DataError, match="has no row with the columns Image Name, common nevus"):
        read(tmp_path)


def test_read_xlsx_reads_inline_and_formatted_text(tmp_path):
    row = '<row r="1"><c r="A1" t="inlineStr"><is><r><t>a</t></r><r><t>b</t></r></is></c><c r="AB1"><v>7</v></c></row>'
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet><sheetData>{row}</sheetData></worksheet>")
    assert read_xlsx(tmp_path / "a.xlsx") == [{"A": "ab", "AB": "7"}]


@pytest.mark.parametrize(
    "sheet",
    [
        None,
        "<worksheet",
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet>&a;</worksheet>',
        '<worksheet><row><c r="A1" t="s"><v>3</v></c></row></worksheet>',
        "<worksheet>" + " " * 10_000_001 + "</worksheet>",
    ],
)
def test_read_xlsx_of_a_damaged_or_hostile_file_raises(tmp_path, sheet):
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        if sheet:
            archive.writestr("xl/worksheets/sheet1.xml", sheet)
    with pytest.raises(DataError, match=r"a\.xlsx cannot be read as an Excel workbook"):
        read_xlsx(tmp_path / "a.xlsx")
    (tmp_path / "a.xlsx").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"a\.xlsx cannot be read as an Excel workbook"):
        read_xlsx(tmp_path / "a.xlsx")


# ----------------------------------------------------------------------------------------------------------- derm7pt


def test_read_derm7pt_takes_the_dermoscopic_images_whatever_their_case(tmp_path):
    dataset = read(derm7pt(tmp_path / "release_v0").parent)
    table = check_contract(dataset)
    assert dataset.name == "derm7pt" and dataset.classes == DERM7PT_CLASSES and len(DERM7PT_CLASSES) == 20
    assert [path.rpartition("/images/")[2] for path in table["path"]] == [f"NEL/Nel{k:03d}.jpg" for k in range(8)]
    assert table["image_id"][:2].to_list() == ["NEL-Nel000", "NEL-NEL001"]
    assert dataset.class_names().value_counts().to_dict() == dict.fromkeys(
        ("clark nevus", "melanoma (in situ)", "seborrheic keratosis", "lentigo"), 2
    )
    assert table["split"].to_list() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2


def test_read_derm7pt_exact_path_comes_before_one_of_other_case(tmp_path):
    root = derm7pt(tmp_path)
    write_image(root / "images/NEL/NEL001.JPG", 99)
    if len(list((root / "images/NEL").glob("*001.*"))) < 2:
        pytest.skip("the file system ignores case")
    paths = read(root).table["path"].to_list()
    assert paths[1].endswith("NEL/NEL001.JPG") and paths[0].endswith("NEL/Nel000.jpg")


def test_read_derm7pt_without_index_files_has_no_splits(tmp_path):
    for path in derm7pt(tmp_path).glob("meta/*_indexes.csv"):
        path.unlink()
    assert read(tmp_path).table["split"].isna().all()


def test_read_derm7pt_row_numbers_that_are_none_are_ignored(tmp_path):
    write_lines(derm7pt(tmp_path) / "meta/valid_indexes.csv", "indexes", "4", "inf", "x", "5.0", "-1", "99")
    assert (read(tmp_path).table["split"] == "val").to_list() == [False] * 4 + [True] * 2 + [False] * 2


def test_read_derm7pt_unknown_diagnosis_missing_image_and_bom(tmp_path):
    root = derm7pt(tmp_path)
    text = (root / "meta/meta.csv").read_text().replace("1,clark nevus", "1,wart", 1)
    (root / "meta/meta.csv").write_text(text, encoding="utf-8-sig")
    (root / "images/NEL/Nel007.jpg").unlink()
    dataset = read(root)
    assert len(check_contract(dataset)) == 7 and dataset.class_names().isna().to_list() == [True] + [False] * 6
    problems = "\n".join(dataset.problems)
    assert "1 (NEL-Nel000) have an unknown label in meta.csv ('wart')" in problems
    assert "1 (NEL-NEL007) are listed in the label file but have no image file" in problems


def test_read_derm7pt_one_image_of_two_cases_is_left_to_the_audit(tmp_path):
    path = derm7pt(tmp_path) / "meta/meta.csv"
    path.write_text(path.read_text() + "9,dermal nevus,1,,NEL/Nel000.jpg,,\n")
    dataset = read(tmp_path)
    assert {"NEL-Nel000-1", "NEL-Nel000-9"} <= set(check_contract(dataset)["image_id"])
    assert audit(dataset, progress=False).conflicts == [["NEL-Nel000-1", "NEL-Nel000-9"]]


# ------------------------------------------------------------------------------------------------------- PAD-UFES-20


def test_read_pad_ufes_20_has_labels_lesions_and_says_that_it_is_no_dermoscopy(tmp_path):
    dataset = read(pad_ufes_20(tmp_path))
    table = check_contract(dataset)
    assert dataset.name == "pad_ufes_20" and dataset.classes == PAD_UFES_20_CLASSES
    assert dataset.counts()["all"].to_dict() == dict.fromkeys(PAD_UFES_20_CLASSES, 2) | {"all": 12}
    assert table["lesion_id"].nunique() == 6 and table["lesion_id"][0] == "PAT_0-20"
    assert "not dermoscopic" in dataset.problems[0] and dataset.style == "structure"


def test_read_pad_ufes_20_parts_beside_the_table_unknown_diagnosis_and_missing_image(tmp_path):
    root = pad_ufes_20(tmp_path)
    for part in list((root / "images").iterdir()):
        shutil.move(part / part.name, root / part.name)
    shutil.rmtree(root / "images")
    (root / "imgs_part_1/PAT_0_20_0.png").unlink()
    text = (root / "metadata.csv").read_text().replace("MEL", "wart", 1)
    (root / "metadata.csv").write_text(text, encoding="utf-8-sig")
    dataset = read(root)
    assert len(check_contract(dataset)) == 11 and dataset.class_names().isna().sum() == 1
    problems = "\n".join(dataset.problems)
    assert "(PAT_2_22_2) have an unknown label in metadata.csv ('wart')" in problems
    assert "1 (PAT_0_20_0) are listed in the label file but have no image file" in problems


def test_read_pad_ufes_20_still_packed_names_the_archive(tmp_path):
    shutil.rmtree(pad_ufes_20(tmp_path) / "images")
    write_lines(tmp_path / "images/imgs_part_1.zip", "packed")
    with pytest.raises(DataError, match=r"12 of 12 pad_ufes_20 images are missing.*unpack images/imgs_part_1\.zip"):
        read(tmp_path)


def test_read_table_called_metadata_of_another_set_is_not_pad_ufes_20(tmp_path):
    write_lines(tmp_path / "metadata.csv", "image_id,label", "a,b")
    with pytest.raises(DataError, match=r"(?s)none of the known layouts.*ph2.*derm7pt.*pad_ufes_20"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["ph2", "derm7pt", "pad_ufes_20"])
def test_open_dataset_external_set_without_a_folder_says_what_is_needed(name):
    with pytest.raises(
        DataError, match=f"the data set '{name}' has no download: set LESION_DATA_ROOT .* to its folder"
    ):
        open_dataset(get_config(name))


# --------------------------------------------------------------------------------------------------------- diagnoses


def test_our_class_of_every_external_diagnosis_is_ours_or_named_here():
    ours = {name: our_class(name) for name in [*PH2_CLASSES, *DERM7PT_CLASSES, *PAD_UFES_20_CLASSES, *ISIC2017_CLASSES]}
    others = {name for name, c in ours.items() if c not in HAM_CLASSES}
    assert others == {"SCC", "lentigo", "melanosis", "miscellaneous"} and all(ours[name] == name for name in others)
    assert [ours[name] for name in PH2_CLASSES] == ["NV", "NV", "MEL"]
    assert [ours[name] for name in PAD_UFES_20_CLASSES] == ["AKIEC", "BCC", "MEL", "NV", "SCC", "BKL"]
    counts = pd.Series([ours[name] for name in DERM7PT_CLASSES]).value_counts()
    assert counts[["NV", "MEL", "BKL", "BCC", "DF", "VASC"]].to_list() == [7, 6, 1, 1, 1, 1]


def test_our_class_ignores_case_blanks_and_hyphens_and_keeps_other_names():
    spellings = {"Pigmented_benign-keratosis ": "BKL", "NEVUS": "NV", "sk": "BKL", "akiec": "AKIEC", "benign": "benign"}
    assert {name: our_class(name) for name in spellings} == spellings
    assert [our_class(name) for name in HAM_CLASSES] == HAM_CLASSES
