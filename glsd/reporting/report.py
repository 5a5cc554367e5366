"""`glsd report`: which page a folder gets, and where it is written."""

from glsd.reporting.pages.evaluation import evaluation_page
from glsd.reporting.pages.run import run_page
from glsd.reporting.pages.sweep import sweep_page
from glsd.runs.directory import CONFIG, RunDirectory
from glsd.runs.records import DATA, EVALUATION, SWEEP, Evaluation, read_record
from glsd.storage.files import write
from glsd.storage.listing import what_is_at
from glsd.storage.uris import absolute

REPORT = "report.html"


def report(path: str, out: str | None = None) -> str:
    """Write the report of a run, an evaluation or a sweep in a folder, local or a URI, and return where it lies.

    The page is `report.html` in the folder, or the file `out`, local or a URI. A sweep's tables and figures are also
    written into its folder as files.

    Raises:
        ValueError: the folder is none of these, its settings are not of this version, or `out` is a folder.
    """
    if out is not None and what_is_at(absolute(out)) == "folder":
        raise ValueError(f"--out must name a file for the page, such as {REPORT}, and {out} is a folder")
    folder = RunDirectory(path)
    if folder.read(SWEEP) is not None:
        page = sweep_page(path)
    elif folder.sizes().keys() >= {CONFIG, DATA}:
        page = run_page(folder)
    elif (evaluation := read_record(folder, Evaluation)) is not None:
        page = evaluation_page(folder, evaluation)
    else:
        raise ValueError(
            f"{path} is neither a run nor an evaluation nor a sweep: it holds no {CONFIG} with {DATA}, no {EVALUATION} "
            f"and no {SWEEP}"
        )
    content = page.encode()
    if out is None:
        folder.write(REPORT, content)
        return folder.uri(REPORT)
    write(absolute(out), content)
    return out
