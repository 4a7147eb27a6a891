"""Builds the Debian package: rmbgd with CPU torch, whole below /opt/rmbgd, for the Python of the Debian it is built on.

    python -m tools.deb [--out build/deb] [--torch torch==2.13.0+cpu]

pip fetches the libraries from the index that it is configured for; the CPU build of torch lies in one of its own:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. systemd-python is compiled: gcc pkg-config libsystemd-dev
python3-dev.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYTHON = "/usr/bin/python3"
HOME = "opt/rmbgd"
EXTRAS = "completion,fetch,heif,metrics,openvino,report,systemd"
# What C++ extensions of torch are compiled with: 11,000 small files, which slow flash would feel at every upgrade.
UNUSED = ("torch/include", "torch/share")
SOURCES = ("rmbgd", "systemd", "config", "contrib", "docs")
PAGES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
PLACES = {  # in the package: file of the repository
    "usr/lib/sysusers.d/rmbgd.conf": "systemd/rmbgd.sysusers",
    "usr/lib/tmpfiles.d/rmbgd.conf": "systemd/rmbgd.tmpfiles",
    "etc/logrotate.d/rmbgd": "systemd/rmbgd.logrotate",
    "etc/rmbgd/rmbgd.toml": "config/rmbgd.toml",
}
CONFFILES = ("etc/logrotate.d/rmbgd", "etc/rmbgd/rmbgd.toml")
DOCUMENTS = "usr/share/doc/rmbgd"
SCRIPTS = REPOSITORY / "tools" / "debian"  # preinst, postinst, prerm, postrm, copyright, lintian-overrides
CONTROL = """\
Package: rmbgd
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Depends: python3 (>= {python}), python3 (<< {next}), systemd (>= 249), libc6, libstdc++6, libsystemd0
Recommends: logrotate
Section: graphics
Priority: optional
Description: remove the background of every image dropped into a folder
 A service that watches folders, computes a cutout of every image that arrives
 and publishes each one whole or not at all. It loses no image when it is
 killed, restarted or out of disk space.
 .
 Everything that it needs lies below /opt/rmbgd, with torch built for the CPU.
"""


def build(out: Path, torch: str, checkout: Path, version: str | None = None) -> Path:
    """The package that was made. Raises CalledProcessError when pip or dpkg-deb fails."""
    version = version or str(tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["version"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rmbgd-deb-", dir=out) as scratch:
        root, source = Path(scratch, "root"), Path(scratch, "source")
        # A copy, as pip writes into the source that it builds, and old builds may lie there.
        for name in (each for each in SOURCES if (checkout / each).exists()):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(checkout / name, source / name, symlinks=True, ignore=ignored)
        for name in PAGES:
            shutil.copy(checkout / name, source)
        install(root, source, torch)
        units = {
            path.name
            for kind in ("service", "path", "timer", "slice")
            for path in (checkout / "systemd").glob(f"*.{kind}")
        }
        units.discard("rmbgd-user.service")  # what `rmbgd service install --user` makes a unit from
        places = PLACES | {f"lib/systemd/system/{name}": f"systemd/{name}" for name in units}
        for place, name in places.items():
            put(root / place, (checkout / name).read_bytes())
        Path(root, "usr/bin").mkdir(parents=True)
        Path(root, "usr/bin/rmbgd").symlink_to(f"/{HOME}/bin/rmbgd")
        documents(root, checkout, version)
        manual(root, Path(scratch, "manual"))
        control(root, version)
        for path in (root, *root.rglob("*/")):
            path.chmod(0o755)
        package = out / f"rmbgd_{version}_{architecture()}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z6", "--build", root, package)
    return package


def install(root: Path, source: Path, torch: str) -> None:
    """A virtual environment that believes to have been made at /opt/rmbgd."""
    home = root / HOME
    run(PYTHON, "-m", "venv", "--without-pip", home)
    run(*pip(home / "bin/python"), torch, f"{source}[{EXTRAS}]")
    packages = next(home.glob("lib/python3*/site-packages"))
    if found := [path.name for path in packages.glob("nvidia_*cu1*")]:
        raise SystemExit(f"not the CPU build of torch: it brought {', '.join(found)}")
    for name in UNUSED:
        shutil.rmtree(packages / name, ignore_errors=True)
    for program in (packages / "torch/bin").iterdir():
        if program.is_file() and program.name != "torch_shm_manager":  # torch's import needs it; others are tests
            program.unlink()
    for path in packages.rglob("*"):
        if path.is_file() and path.parent.name != "bin":
            path.chmod(0o644)
    for record in packages.glob("*.dist-info/direct_url.json"):
        record.unlink()  # names the folder of the build
    here, there = os.fsencode(home), os.fsencode(f"/{HOME}")
    for path in (home / "pyvenv.cfg", *(each for each in (home / "bin").iterdir() if not each.is_symlink())):
        path.write_bytes(path.read_bytes().replace(here, there))
    compileall.compile_dir(packages, quiet=2, workers=0, stripdir=root, prependdir="/")


def pip(python: Path) -> tuple[str | Path, ...]:
    return sys.executable, "-m", "pip", "--python", python, "install", "--no-compile", "--quiet"


def documents(root: Path, checkout: Path, version: str) -> None:
    place = root / DOCUMENTS
    for name in ("docs", "contrib"):
        if (checkout / name).exists():
            shutil.copytree(checkout / name, place / name)
    for name in ("README.md", "CHANGELOG.md"):
        put(place / name, (checkout / name).read_bytes())
    put(place / "copyright", (SCRIPTS / "copyright").read_bytes())
    put(root / "usr/share/lintian/overrides/rmbgd", (SCRIPTS / "lintian-overrides").read_bytes())
    date = format_datetime(datetime.now(UTC))
    entry = f"rmbgd ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {maintainer()}  {date}\n"
    put(place / "changelog.gz", gzip.compress(entry.encode(), mtime=0))


def manual(root: Path, scratch: Path) -> None:
    """Man pages, by the libraries of the package: those who build it need no environment of this project's."""
    python, library = root / HOME / "bin/python", scratch / "library"
    run(*pip(python), "--target", library, "argparse-manpage")
    run("env", f"PYTHONPATH={library}", "PYTHONDONTWRITEBYTECODE=1", python, "-m", "tools.man", scratch / "pages")
    for page in (scratch / "pages").iterdir():
        place = root / f"usr/share/man/man{page.suffix[1:]}"
        put(place / f"{page.name}.gz", gzip.compress(page.read_bytes(), mtime=0))


def control(root: Path, version: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    minor = int(run(PYTHON, "-c", "import sys; print(sys.version_info[1])"))
    facts = CONTROL.format(
        version=version,
        architecture=architecture(),
        maintainer=maintainer(),
        kilobytes=sum(-(-path.stat().st_size // 1024) for path in files),
        python=f"3.{minor}",
        next=f"3.{minor + 1}",
    )
    sums = {path.relative_to(root): hashlib.md5(path.read_bytes()).hexdigest() for path in files}  # noqa: S324, dpkg's
    put(root / "DEBIAN/control", facts.encode())
    put(root / "DEBIAN/conffiles", "".join(f"/{name}\n" for name in CONFFILES).encode())
    listed = [f"{digest}  {name}\n" for name, digest in sums.items() if str(name) not in CONFFILES]
    put(root / "DEBIAN/md5sums", "".join(listed).encode())
    for name in ("preinst", "postinst", "prerm", "postrm"):
        put(root / "DEBIAN" / name, (SCRIPTS / name).read_bytes(), mode=0o755)


def put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def architecture() -> str:
    return run("dpkg", "--print-architecture").strip()


def maintainer() -> str:
    """As Debian's own tools take it from the environment."""
    name = os.environ.get("DEBFULLNAME", "The rmbgd authors")
    return f"{name} <{os.environ.get('DEBEMAIL', 'rmbgd@localhost.localdomain')}>"


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/deb")
    parser.add_argument("--torch", default="torch==2.13.0+cpu", help="of the CPU build (default: %(default)s)")
    parser.add_argument("--source", type=Path, default=REPOSITORY, help="another checkout (default: this one)")
    parser.add_argument("--version", help="instead of pyproject.toml's")
    options = parser.parse_args()
    if options.version and not re.fullmatch(r"\d[\w.+~]*", options.version):
        parser.error(f"{options.version} is no version of a Debian package")
    package = build(options.out.resolve(), options.torch, options.source, options.version)
    print(f"{package} ({package.stat().st_size / 1e6:,.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
