"""Execute notebooks: `run` writes executed copies to outputs/, `in-place` re-executes them for committing.

Notebooks whose results others read run first, one after the other. The rest run two at a time, each with half of the
cores unless OMP_NUM_THREADS is set, because small networks cannot use more.
"""

import os
import shutil
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

from helpers.config import cpu_count, get_config  # noqa: E402

FIRST = ("01", "02", "03", "05")  # they write stores, generator and classifier

# Figures of the README, copied when notebooks are executed for committing.
GALLERY = ("01_examples.png", "02_structure.png", "03_released.png")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path, label: str, threads: int) -> tuple[nbformat.NotebookNode, str | None]:
    """Run a notebook top to bottom in its own folder; returns the executed notebook, and the error of a failed cell."""
    notebook = nbformat.read(path, as_version=4)
    num_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    bar = tqdm(total=num_cells, desc=label, unit="cell", leave=False, file=sys.stdout)
    client = NotebookClient(
        notebook,
        timeout=3600,
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
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            widget = "application/vnd.jupyter.widget-view+json"
            cell.outputs = [output for output in cell.outputs if widget not in output.get("data", {})]
            for output in cell.outputs:
                if output.output_type != "stream":
                    output.metadata = {}
    return notebook


def run(mode: str, path: Path, label: str, threads: int) -> bool:
    """Execute a notebook, write it, and print its time or its error; returns whether it succeeded."""
    start, folder = time.perf_counter(), get_config("sample").outputs / "notebooks"
    notebook, error = execute(path.resolve(), label, threads)
    target = path if mode == "in-place" and not error else folder / path.name
    nbformat.write(clean_metadata(notebook), target)
    if error:
        print(f"{label} failed; its outputs until then are in {target}\n{error}")
        return False
    if mode == "run":
        target.with_suffix(".html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    print(f"{label}  {time.perf_counter() - start:.0f} s", flush=True)
    return True


def main(mode: str, paths: list[Path]) -> int:
    """Execute `paths`; mode: "run" or "in-place". Returns the exit status."""
    cfg = get_config("sample")
    (cfg.outputs / "notebooks").mkdir(parents=True, exist_ok=True)
    first = [path for path in paths if path.name[:2] in FIRST]
    rest = [path for path in paths if path.name[:2] not in FIRST]
    labels = {path: f"[{number}/{len(paths)}] {path.stem}" for number, path in enumerate([*first, *rest], 1)}
    if not all(run(mode, path, labels[path], cpu_count()) for path in first):
        return 1
    workers = 1 if len(rest) < 2 else 2
    threads = max(1, cpu_count() // workers)
    with ThreadPoolExecutor(workers) as pool:
        succeeded = list(pool.map(lambda path: run(mode, path, labels[path], threads), rest))
    if not all(succeeded):
        return 1
    if mode == "in-place":
        executed = {path.name[:2] for path in paths}
        for name in (name for name in GALLERY if name[:2] in executed):
            shutil.copy(cfg.outputs / "figures" / name, ROOT / "outputs" / "gallery" / name)
    outputs = os.path.relpath(cfg.outputs)
    print(f"executed notebooks: {outputs}/notebooks/*.html; figures: {outputs}/figures/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [Path(p) for p in sys.argv[2:]]))
