"""`make badges REPO=owner/name`: writes the repository's name to helpers/config.py, README, citation and notebooks."""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import REPOSITORY  # noqa: E402

SETUP = """\
# Setup: Colab fetches the repository once and installs what is missing; elsewhere nothing happens.
import os
import subprocess
import sys

repository = "{repository}"
root = os.path.abspath("..")
if "google.colab" in sys.modules:
    root = os.path.abspath(repository.split("/")[1])
    if not os.path.isdir(root):
        address = os.environ.get("LESION_REPOSITORY", f"https://github.com/{{repository}}")
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, root], check=True)
if sys.path[0] != root:
    sys.path.insert(0, root)
if "google.colab" in sys.modules:
    from helpers.config import install_missing

    install_missing()"""


def setup_cell(repository: str) -> str:
    """Source of the setup cell of every notebook."""
    return SETUP.format(repository=repository)


def badge(repository: str, notebook: str) -> str:
    """Markdown of the Colab badge; notebook: file name without extension."""
    url = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"


def write_notebook(path: Path, repository: str) -> None:
    """Write the badge into the first cell and the setup into the cell that starts with "# Setup"; outputs stay."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    first.source = re.sub(r"\[!\[Open in Colab\].*\)", badge(repository, path.stem), first.source)
    for cell in notebook.cells:
        if cell.source.startswith("# Setup"):
            cell.source = setup_cell(repository)
    nbformat.write(notebook, path)


def main(repository: str) -> None:
    """Write `repository`, of the form owner/name, everywhere; exits with a message for another form."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        sys.exit(f"REPO must have the form owner/name, got {repository!r}")
    config, readme = ROOT / "helpers/config.py", ROOT / "README.md"
    config.write_text(re.sub(r'(?m)^REPOSITORY = ".*"$', f'REPOSITORY = "{repository}"', config.read_text()))
    for path in (readme, ROOT / "CITATION.cff"):
        path.write_text(path.read_text().replace(REPOSITORY, repository))
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        write_notebook(path, repository)
    print(f"{repository} written to config, README, citation, badges and setup cells")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY)
