"""The query variants of a run: which file, and whether it belongs to the questions."""

import logging
from dataclasses import replace
from pathlib import Path

from _cli import PROJECT_ROOT

from config import Settings
from src.core.artifacts import file_sha256
from src.core.errors import UserError
from src.core.storage import DataFolder
from src.core.types import Queries
from src.stages.preprocess import read_table
from src.stages.variants import (
    ID_COLUMN,
    MAKE_COMMAND,
    ORIGINAL_COLUMN,
    QueryVariants,
    check_variants,
    read_parquet,
)

AUTO = "auto"
FILE_NAME = "query_variants.parquet"
MOST_VARIANTS = 999  # columns of a CSV file that are looked for

log = logging.getLogger("search")


def automatic_files(data: DataFolder) -> tuple[Path, Path]:
    """The parquet and the CSV file that ``auto`` looks for."""
    parquet = data.root / "processed" / FILE_NAME
    return parquet, parquet.with_suffix(".csv")


def variants_path(settings: Settings, data: DataFolder) -> Path | None:
    """The file that ``QUERY_VARIANTS`` means; ``None`` where it is off, or where ``auto`` finds none.

    Raises:
        UserError: where the named file does not exist.
    """
    if settings.query_variants is None:
        return None
    if settings.query_variants != AUTO:
        path = PROJECT_ROOT / _in_home(settings.query_variants)
        if not path.is_file():
            raise UserError(
                f"QUERY_VARIANTS = {settings.query_variants!r}: no such file ({path}). Give the path of an existing "
                f'one, "auto" or None; to make one: {MAKE_COMMAND}'
            )
        return path
    found = [path for path in automatic_files(data) if path.is_file()]
    if len(found) > 1:
        raise UserError(
            f"{found[0]} and {found[1].name} are both there, and QUERY_VARIANTS is auto. Remove one, or name the one "
            "that is meant."
        )
    return found[0] if found else None


def _in_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~name" where nobody is called so: a file's own name
        return Path(name)


def load_variants(settings: Settings, data: DataFolder, every_query: Queries, queries: Queries) -> QueryVariants:
    """Variants of the questions that are searched; the log says which file is used, and what of it.

    Args:
        every_query: all questions, which the file is checked against.
        queries: the first ones of them that are searched (``--limit``).

    Raises:
        UserError: where the file is missing, cannot be read, or belongs to other questions.
    """
    path = variants_path(settings, data)
    if path is None:
        why = "QUERY_VARIANTS = None" if settings.query_variants is None else f"no {FILE_NAME} or .csv in processed"
        log.info("Query variants: off (%s).", why)
        return QueryVariants()
    if path.suffix == ".parquet":
        table = read_parquet(path)
    elif path.suffix == ".csv":
        names = [f"variant_{number}" for number in range(1, MOST_VARIANTS + 1)]
        table = read_table(path, {ID_COLUMN: ID_COLUMN, ORIGINAL_COLUMN: ORIGINAL_COLUMN}, optional=names)
    else:
        raise UserError(f"{path}: query variants are a .parquet or .csv file. Save it as one of these.")
    found = check_variants(table, every_query, path)
    variants = replace(found.head(len(queries)), file_sha256=file_sha256(path))
    reads = "the question" if settings.reranker_query == "original" else f"all wordings ({settings.reranker_query})"
    log.info(
        "Query variants: %s. Weight %g against 1 for the question. The reranker reads %s. File: %s",
        variants.describe(len(queries)), settings.query_variant_weight, reads, path,
    )  # fmt: skip
    return variants
