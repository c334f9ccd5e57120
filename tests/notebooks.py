"""Execute notebooks: `run` leaves executed copies in outputs/, `in-place` re-executes them for committing.

Those that others build upon come first (execute them before others that are asked for alone); the rest run two at a
time, each with half of the cores if OMP_NUM_THREADS does not say otherwise, as small networks cannot keep more busy.
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

FIRST = ("01", "02", "03", "05")  # stores, generator, classifier: what others would make again

# Pictures that the README shows, taken over when notebooks are executed for committing.
GALLERY = ("01_examples.png", "02_structure.png", "03_released.png")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path, label: str, threads: int) -> tuple[nbformat.NotebookNode, str | None]:
    """Run a notebook top to bottom in its own folder -> the executed notebook, and what went wrong if anything did."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    bar = tqdm(total=cells, desc=label, unit="cell", leave=False, file=sys.stdout)
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


def without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """No times, no kernel of one machine, no remains of progress bars: a commit shows what the content changed."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
            for output in cell.outputs:
                if output.output_type != "stream":
                    output.metadata = {}
    return notebook


def run(how: str, path: Path, label: str, threads: int) -> bool:
    """Execute a notebook and leave it where it belongs; says how long it took, or what went wrong."""
    start, folder = time.perf_counter(), get_config("sample").outputs / "notebooks"
    notebook, error = execute(path.resolve(), label, threads)
    copy = path if how == "in-place" and not error else folder / path.name
    nbformat.write(without_traces(notebook), copy)
    if error:
        print(f"{label} failed; as far as it went: {copy}\n{error}")
        return False
    if how == "run":
        copy.with_suffix(".html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    print(f"{label}  {time.perf_counter() - start:.0f} s", flush=True)
    return True


def main(how: str, paths: list[Path]) -> int:
    cfg = get_config("sample")
    (cfg.outputs / "notebooks").mkdir(parents=True, exist_ok=True)
    first, rest = ([p for p in paths if (p.name[:2] in FIRST) == known] for known in (True, False))
    labels = {path: f"[{number}/{len(paths)}] {path.stem}" for number, path in enumerate([*first, *rest], 1)}
    if not all(run(how, path, labels[path], cpu_count()) for path in first):
        return 1
    together = 1 if len(rest) < 2 else 2
    with ThreadPoolExecutor(together) as pool:
        done = list(pool.map(lambda path: run(how, path, labels[path], max(1, cpu_count() // together)), rest))
    if not all(done):
        return 1
    if how == "in-place":
        executed = {path.name[:2] for path in paths}
        for name in (name for name in GALLERY if name[:2] in executed):
            shutil.copy(cfg.outputs / "figures" / name, ROOT / "outputs" / "gallery" / name)
    place = os.path.relpath(cfg.outputs)
    print(f"Look at {place}/notebooks/*.html (executed notebooks) and {place}/figures/ (their pictures).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [Path(p) for p in sys.argv[2:]]))
