"""Checks the queue of a fleet: does the broker answer, may we use it, and is it as it should be."""

from __future__ import annotations

from collections.abc import Iterator

from rmbgd.config.extras import is_installed
from rmbgd.config.load import Config
from rmbgd.doctor.checks import CheckResult, fail, ok
from rmbgd.errors import ConfigError

PATIENCE = 5.0  # s


def check_queue(config: Config) -> Iterator[CheckResult]:
    if config.source.kind == "folders" or not is_installed(
        "nats"
    ):  # that it is missing, the configuration's check says
        return
    from rmbgd.fleet.broker import Broker  # of an extra
    from rmbgd.fleet.pulls import BrokerFault
    from rmbgd.fleet.streams import unfit

    try:
        broker = Broker(config.source, "rmbgd doctor", lambda _: None)
    except ConfigError as error:
        yield fail("queue", str(error))
        return
    broker.start()
    try:
        broker.wait_until_connected(PATIENCE)
        found = unfit(broker, [folder.name for folder in config.folder], config.source.lease)
    except BrokerFault as fault:
        yield fail("queue", fault.detail)
    else:
        for text in found:
            yield fail("queue", text, "mend it with `rmbgd fleet setup --change`")
        if not found:
            yield ok("queue", f"nats-server {broker.version} at {', '.join(config.source.servers)}, as it should be")
    finally:
        broker.close()
