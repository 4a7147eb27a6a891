"""Checks the queue of a fleet and its buckets: do they answer, may we use them, is the queue as it should be."""

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
        found = unfit(broker, config.root_names, config.source.lease)
    except BrokerFault as fault:
        yield fail("queue", fault.detail)
    else:
        for text in found:
            yield fail("queue", text, "mend it with `rmbgd fleet setup --change`")
        if not found:
            yield ok("queue", f"nats-server {broker.version} at {', '.join(config.source.servers)}, as it should be")
    finally:
        broker.close()


def check_buckets(config: Config) -> Iterator[CheckResult]:
    """What reading and listing show; whether it may write, the first image shows."""
    if not config.bucket or not is_installed("botocore"):
        return
    from rmbgd.fleet.objects import ObjectStore, Place  # of an extra

    store = ObjectStore(config.s3)
    for bucket in config.bucket:
        places = [Place.of(each) for each in (bucket.input, bucket.output, bucket.failed, bucket.review) if each]
        try:
            for place in places:
                store.reachable(place)
        except OSError as error:
            yield fail(
                f"bucket {bucket.name}", f"{error.filename}: {error.strerror}", "see s3.endpoint and s3.credentials"
            )
        else:
            yield ok(f"bucket {bucket.name}", f"{bucket.input} answers")
