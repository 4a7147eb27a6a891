#!/bin/sh
# Everything that a GPU machine is wanted for, in one command of ten minutes: correctness first, then the table.
#
#     tools/gpu_check.sh OUT [arguments of tools.bench gpu]
#
# OUT is a folder (default: $OUT, else gpu-check). What has been found lies there at every moment, so that a run that is
# cut short loses nothing: bench_gpu.json, bench_gpu.txt, bench_gpu.log, machine.txt, tests.txt, profile.txt and
# sanitizer.txt. Exits 1 when a section failed, after doing the others.
#
#   PYTHON        the interpreter that has torch (default: .venv/bin/python, else python3)
#   WHEELS        a folder of wheels for what that interpreter lacks; they are unpacked beside the system, nothing is
#                 fetched: pip download --only-binary=:all: --no-deps -d WHEELS pydantic pydantic-core==VERSION \
#                     annotated-types typing-inspection isal simplejpeg structlog watchdog pytest-randomly
#                 (VERSION as `unzip -p WHEELS/pydantic-2*.whl "*/METADATA" | grep pydantic-core` says; name the other
#                 machine's Python and platform: --python-version 3.12 --platform manylinux_2_28_x86_64
#                 --platform manylinux2014_x86_64)
#   SECONDS_ALL   for everything (default: 570, for machines that are lent for ten minutes at a time)
#   RMBGD_SHARED  the folder above birefnet/recipe.py, where the goldens are (default: shared in the checkout, or beside)
set -u
cd "$(dirname "$0")/.." || exit 1
began=$(date +%s)
out=${1:-${OUT:-gpu-check}}
[ $# -gt 0 ] && shift
mkdir -p "$out" || exit 1
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
if [ -z "${RMBGD_SHARED:-}" ] && [ -d shared/birefnet ]; then
    RMBGD_SHARED=$PWD/shared
    export RMBGD_SHARED
fi
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d) || exit 1
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
export PYTHONPATH OMP_WAIT_POLICY PYTHONUNBUFFERED

# What the machine is, before Python has anything to say.
{
    date
    uname -a
    nvidia-smi -q
    gcc --version
    "$python" -c 'import sysconfig; print(sysconfig.get_path("include"))'
    ls "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
    /sbin/ldconfig -p | grep -i -E 'libcuda|libnvidia-ml'
    ulimit -l
} >"$out/machine.txt" 2>&1

left=$((${SECONDS_ALL:-570} - $(date +%s) + began - 5))
exec "$python" -m tools.bench gpu --out "$out" --budget "$left" "$@"
