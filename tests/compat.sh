#!/bin/sh
# Test one build under several versions of torch: import the module that was built against the newest version, and run
# the tests of the ops, under each older version in its own virtual environment. Report failures after the last version.
#   sh tests/compat.sh BUILD_PYTHON [TORCH_VERSION...]
set -eu
build_python=$1
shift
versions=${*:-2.11.0 2.12.0}
root=$(cd "$(dirname "$0")/.." && pwd)
packages="numpy pillow safetensors tqdm tyro matplotlib pytest hypothesis scikit-learn"

install() {
    version=$1
    folder=$2
    [ ! -e "$folder/ready" ] || return 0
    "$build_python" -m venv "$folder"
    # constraints.txt pins another torch; its other versions apply here too.
    grep -v '^torch==' "$root/constraints.txt" >"$folder/constraints.txt"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "torch==$version"
    # shellcheck disable=SC2086
    "$folder/bin/pip" install --quiet --disable-pip-version-check -c "$folder/constraints.txt" $packages
    touch "$folder/ready"
}

try() {
    python=$1
    PYTHONPATH=$root "$python" - <<'CODE'
import torch
import gan_fast
from gan_fast import extension

info = extension.build_info()
assert info, extension.load_error
print(f"built with torch {info['torch']}, running under torch {torch.__version__}")
print(gan_fast.info())
CODE
    PYTHONPATH=$root "$python" -m pytest -q -p no:cacheprovider tests/ops tests/nn tests/test_backends.py \
        tests/test_fp32_precision.py
}

cd "$root"
failed=
for version in $versions; do
    folder=$root/build/compat-$version
    # A subshell outside of any condition: "set -e" has no effect inside one.
    install "$version" "$folder"
    set +e
    (set -e && try "$folder/bin/python")
    status=$?
    set -e
    [ "$status" -eq 0 ] || failed="$failed $version"
done
if [ -n "$failed" ]; then
    echo "compat: failed under torch$failed" >&2
    exit 1
fi
