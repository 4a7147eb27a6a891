#!/bin/sh
# Everything that a GPU machine is wanted for, in one command: the tests that need a GPU first, then tools.bench gpu.
#
#     tools/gpu_session.sh OUT [arguments of tools.bench gpu]
#
# OUT is a folder (default: $OUT, else gpu-session); it gets tests.txt, bench_gpu.json, bench_gpu.txt and
# bench_gpu.log. Exits 1 when a test failed or a section did, after doing all of both.
#
#   PYTHON   the interpreter that has torch (default: .venv/bin/python, else python3)
#   WHEELS   a folder of wheels for what that interpreter lacks; they are unpacked beside the system, nothing is fetched:
#            pip download --only-binary=:all: --no-deps -d WHEELS pydantic pydantic-core==VERSION annotated-types \
#                typing-inspection isal simplejpeg structlog watchdog pytest-randomly
#            (VERSION as `unzip -p WHEELS/pydantic-2*.whl "*/METADATA" | grep pydantic-core` says; name the other machine's
#            Python and platform: --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64)
#   SECONDS_ALL    for everything (default: 570, for machines that are lent for ten minutes at a time)
#   SECONDS_TESTS  of them for the tests (default: 150)
#   RMBGD_SHARED   the folder above birefnet/recipe.py, where the goldens are (default: shared in the checkout, or beside)
set -u
cd "$(dirname "$0")/.." || exit 1
began=$(date +%s)
out=${1:-${OUT:-gpu-session}}
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
export PYTHONPATH
OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY PYTHONUNBUFFERED

failed=0
tests=$(grep -rlE 'mark\.gpu' tests --include='*.py') # only these: collecting all of them takes a minute
# shellcheck disable=SC2086 # file names of ours, without spaces
timeout "${SECONDS_TESTS:-150}" "$python" -m pytest -m gpu -q -p no:cacheprovider $tests >"$out/tests.txt" 2>&1
status=$?
tail -n 15 "$out/tests.txt"
case $status in
0) ;;
5) echo "gpu_session: no test is marked gpu" ;;
124) failed=1 && echo "gpu_session: the tests did not end within their time; see $out/tests.txt" ;;
*) failed=1 && echo "gpu_session: tests failed ($status); see $out/tests.txt" ;;
esac
left=$((${SECONDS_ALL:-570} - $(date +%s) + began - 10))
"$python" -m tools.bench gpu --out "$out" --budget "$left" "$@" || failed=1
exit $failed
