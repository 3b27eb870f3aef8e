"""Another backend in the place of one that serves: with all that it has open, or beside it."""

import logging

import trio

from vuserd.backend.base import Backend
from vuserd.errors import BackendDown, BackendError, ConfigurationError
from vuserd.exports.directory import Lookout
from vuserd.exports.serving import Serving
from vuserd.exports.starting import DirectoryGone, Plan, Starter
from vuserd.service.journal import about_export

_LOG = logging.getLogger(__name__)


async def hand_over(serving: Serving, plan: Plan, lookout: Lookout | None) -> Plan | None:
    """Have another backend take over all that this one has open; calls go on there.

    Args:
        serving: what the calls are put to, before and after.
        plan: what the other backend is to be like.
        lookout: looks where the export's path leads to.

    Returns:
        The plan with the sandbox that the other one is in; None where the two cannot do it, or
        failed to: the backend stays as it is, or is lost.

    """
    if isinstance(plan.program, ConfigurationError) or lookout is None:
        return None
    if not serving.can_move(plan.config, plan.program):
        return None
    sight, standing = await lookout.see(), serving.standing
    if sight is None or standing is None or sight.standing != standing:
        return None
    mode, *_ = plan.sandboxes()

    async def check(backend: Backend) -> None:
        there = await lookout.see()
        if there is None or there.standing != standing:
            raise BackendDown("another directory stands there by now")
        device, inode = standing.device, standing.inode
        if not await backend.has_opened(device, inode, mode, lookout.limiter):
            raise BackendDown("the other backend has opened another directory")

    name = plan.config.name
    log = about_export(_LOG, name)
    try:
        await serving.move(plan.config, plan.program, mode, plan.directory(sight), check)
    except BackendError as error:
        log.info(
            "export %s: its open files stay with the backend that they are on: %s", name, error
        )
        return None
    moved = plan._replace(modes=[mode])
    what = moved.served_by(serving.backend)
    log.info("export %s goes on with all that it has open: %s", name, what)
    return moved


async def start_beside(starter: Starter, nursery: trio.Nursery, plan: Plan) -> Serving:
    """Start another backend while the present one serves.

    Cancelled, this takes the backend that it is starting with it.

    Raises:
        BackendDown: it cannot be had.

    """
    try:
        serving = await starter.start(nursery, plan)
    except DirectoryGone as gone:
        raise BackendDown(f"the directory of export {plan.config.name} is gone: {gone}") from None
    if not serving.is_serving():
        raise BackendDown(f"the other backend: {serving.failure}")
    return serving
