"""The package index of this machine's pip, as a container reaches it: settings, and folders that they name.

In place of the public one, and nothing else of the documented commands is. `RMBGD_TEST_MIRROR` names Debian's.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.system.conftest import REPOSITORY
from tests.system.machine import Machine

SETTINGS = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "trusted-host", "default-timeout")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
CONSTRAINT = "/etc/rmbgd-tests-constraint.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class PackageIndex:
    environment: dict[str, str]
    folders: dict[Path, str]

    def prepare(self, machine: Machine) -> None:
        """Of torch the release that the project is tested with; and sudo hands the settings on."""
        torch = re.search(r"^TORCH \?= (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert torch
        machine.path(CONSTRAINT).write_text(f"{torch[1]}\n")
        rule = machine.path("/etc/sudoers.d/index")
        rule.parent.mkdir(exist_ok=True)
        rule.write_text('Defaults env_keep += "PIP_* *_proxy"\n')
        rule.chmod(0o440)

    def adapt(self, command: str) -> str:
        """The command without torch's own index where the settings name others."""
        named = {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL"} & set(self.environment)
        return command.replace(f"--extra-index-url {CPU_INDEX}", "") if named else command


def package_index() -> PackageIndex:
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in told.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if key in SETTINGS and (section == ":env:" or key not in settings):
            settings[key] = ast.literal_eval(value)
    environment = {f"PIP_{key.upper().replace('-', '_')}": value for key, value in settings.items()}
    environment |= {"PIP_CONSTRAINT": CONSTRAINT, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment |= {name: os.environ[name] for name in PROXIES if name in os.environ}
    words = [word for value in settings.values() for word in value.split()]
    paths = [Path(word) for word in words if word.startswith("/")]
    indexes = [word.removeprefix("file://") for word in words if word.startswith("file://")]
    paths += [Path(word).parent for word in indexes]  # their pages may link to files beside them
    return PackageIndex(environment, {path: os.fspath(path) for path in paths if path.exists()})
