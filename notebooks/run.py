"""Execute the notebooks, and write the repository's name into them.

    python notebooks/run.py run FILES            executed copies and HTML pages in outputs/
    python notebooks/run.py in-place FILES       the files themselves, for committing
    python notebooks/run.py badges OWNER/NAME    badges and setup cells, helpers/config.py, README and citation

Notebooks whose results others read run first, one after the other. The rest run two at a time, each with half of the
cores unless OMP_NUM_THREADS is set, because small networks cannot use more.
"""

import argparse
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import REPOSITORY, cpu_count, get_config

FIRST = ("01", "02", "03", "05")  # they write stores, generator and classifier

# What Colab reads: a notebook that trains asks for a GPU.
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
# Seconds that a cell may take, by profile; a GPU of `full` trains for hours.
CELL_SECONDS = {"smoke": 180, "demo": 3600, "colab": 3600, "full": 24 * 3600}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

SETUP = """\
# Setup. In Colab: choose here, then Runtime > Run all. Environment variables win over these fields.
data = "sample"  # @param ["sample", "isic2016", "isic2017", "ham10000", "course", "folders"]
data_folder = ""  # @param {{type: "string"}}
profile = "demo"  # @param ["demo", "colab", "full"]
keep_on_drive = False  # @param {{type: "boolean"}}
import os
import subprocess
import sys

os.environ.setdefault("LESION_DATASET", data.replace("sample", "phantoms"))
os.environ.setdefault("LESION_DATA_ROOT", data_folder)
os.environ.setdefault("LESION_PROFILE", profile)
root = os.path.abspath("{name}" if "google.colab" in sys.modules else "..")
if not os.path.isdir(root):
    address = os.environ.get("LESION_REPOSITORY", "https://github.com/{repository}")
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, root], check=True)
if sys.path[0] != root:
    sys.path.insert(0, root)
if "google.colab" in sys.modules:
    from helpers.colab import setup

    setup(keep_on_drive)"""

# ---------------------------------------------------------------------------------------------------------- execution


def execute(path: Path, label: str, threads: int) -> tuple[nbformat.NotebookNode, str | None]:
    """Run a notebook top to bottom in its own folder; returns the executed notebook, and the error of a failed cell."""
    notebook = nbformat.read(path, as_version=4)
    num_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    bar = tqdm(total=num_cells, desc=label, unit="cell", leave=False, file=sys.stdout)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS[get_config().profile],
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    try:
        client.execute(env={"OMP_NUM_THREADS": str(threads)} | os.environ)
        return notebook, None
    except CellExecutionError as error:
        return notebook, str(error)
    finally:
        bar.close()


def clean_metadata(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove times, the machine's kernel and progress bars, so that a commit shows changes of content only."""
    kept = {name: notebook.metadata[name] for name in GPU if name in notebook.metadata}
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}} | kept
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            widget = "application/vnd.jupyter.widget-view+json"
            cell.outputs = [
                output for output in cell.outputs if widget not in output.get("data", {})
            ]
            for output in cell.outputs:
                if output.output_type != "stream":
                    output.metadata = {}
    return notebook


def execute_and_write(mode: str, path: Path, label: str, threads: int) -> bool:
    """Execute a notebook, write it, and print its time or its error; returns whether it succeeded."""
    start, folder = time.perf_counter(), get_config().outputs / "notebooks"
    notebook, error = execute(path.resolve(), label, threads)
    target = path if mode == "in-place" and not error else folder / path.name
    nbformat.write(clean_metadata(notebook), target)
    if error:
        print(f"{label} failed; its outputs until then are in {target}\n{error}")
        return False
    if mode == "run":
        target.with_suffix(".html").write_text(
            HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8"
        )
    print(f"{label}  {time.perf_counter() - start:.0f} s", flush=True)
    return True


def run_notebooks(mode: str, paths: list[Path]) -> int:
    """Execute `paths`; mode: "run" or "in-place". Returns the exit status."""
    cfg = get_config()
    (cfg.outputs / "notebooks").mkdir(parents=True, exist_ok=True)
    first = [path for path in paths if path.name[:2] in FIRST]
    rest = [path for path in paths if path.name[:2] not in FIRST]
    labels = {
        path: f"[{number}/{len(paths)}] {path.stem}"
        for number, path in enumerate([*first, *rest], 1)
    }
    if not all(execute_and_write(mode, path, labels[path], cpu_count()) for path in first):
        return 1
    workers = 1 if len(rest) < 2 else 2
    threads = max(1, cpu_count() // workers)
    with ThreadPoolExecutor(workers) as pool:
        succeeded = list(
            pool.map(lambda path: execute_and_write(mode, path, labels[path], threads), rest)
        )
    if not all(succeeded):
        return 1
    outputs = os.path.relpath(cfg.outputs)
    print(f"executed notebooks: {outputs}/notebooks/*.html; figures: {outputs}/figures/")
    return 0


# ------------------------------------------------------------------------------------------------------------- badges


def setup_cell(repository: str) -> str:
    """Source of the setup cell of every notebook."""
    return SETUP.format(repository=repository, name=repository.split("/")[1])


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


def write_badges(repository: str) -> None:
    """Write `repository`, of the form owner/name, to config, README, citation and every notebook; exits with a message
    for another form."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        sys.exit(f"REPO must have the form owner/name, got {repository!r}")
    config, readme = ROOT / "helpers/config.py", ROOT / "README.md"
    config.write_text(
        re.sub(
            r'(?m)^REPOSITORY = ".*"$',
            f'REPOSITORY = "{repository}"',
            config.read_text(encoding="utf-8"),
        ),
        encoding="utf-8",
    )
    for path in (readme, ROOT / "CITATION.cff"):
        path.write_text(
            path.read_text(encoding="utf-8").replace(REPOSITORY, repository), encoding="utf-8"
        )
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        write_notebook(path, repository)
    print(f"{repository} written to config, README, citation, badges and setup cells")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for mode in ("run", "in-place"):
        commands.add_parser(mode).add_argument("files", nargs="+", type=Path)
    commands.add_parser("badges").add_argument(
        "repository", nargs="?", default=REPOSITORY, metavar="OWNER/NAME"
    )
    args = parser.parse_args()
    if args.command == "badges":
        write_badges(args.repository)
        return 0
    return run_notebooks(args.command, args.files)


if __name__ == "__main__":
    sys.exit(main())
