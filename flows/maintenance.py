"""The flow `gc`: what crashed writers left behind."""

from datetime import timedelta
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from flows.runtime.user_errors import failing_on_user_error
from storage_schemas.maintenance.orphans import collect_orphans


@flow(name="gc", flow_run_name="gc {stores}")
@failing_on_user_error
def gc(
    stores: list[str], age_hours: Annotated[float, Field(ge=0, le=24 * 3660)] = 24.0, delete: bool = False
) -> dict[str, int]:
    """List, or delete, what crashed writers have left and no version names. Old versions stay readable.

    Args:
        stores: datasets.
        age_hours: safety age; younger files may be in the making.
        delete: delete what was found; by default it is only listed.
    """
    logger = get_run_logger()
    sizes = {}
    for store in stores:
        report = collect_orphans(store, age=timedelta(hours=age_hours), remove=delete)
        sizes[store] = report.bytes
        logger.info(
            "%s: %d orphans with %d bytes %s, %d younger left alone",
            store,
            len(report.orphans),
            report.bytes,
            "deleted" if delete else "found",
            report.young,
        )
    return sizes
