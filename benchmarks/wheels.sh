#!/usr/bin/env bash
# Wheels to carry to a machine that has torch, transformers and pytest but no network: what Masquerade needs beside them.
#   benchmarks/wheels.sh FOLDER [PYTHON_VERSION]      PYTHON_VERSION of the other machine, e.g. 3.12
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?say where the wheels go: benchmarks/wheels.sh FOLDER [PYTHON_VERSION]}
version=${2:-3.12}
mkdir -p "$folder"
platforms=()
for glibc in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
needed=(webdataset braceexpand pydantic pydantic_core annotated-types typing-inspection wandb sentry-sdk platformdirs
  GitPython gitdb smmap simplejpeg isal schedulefree torchao hjson)
for name in "${needed[@]}"; do
  pin=$(grep -i "^${name//[-_]/[-_]}==" constraints.txt || echo "$name")
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 -d "$folder" "$pin"
done
# DeepSpeed has no wheel of its own; any Python that has torch makes one for all.
"${PYTHON:-python3}" -m pip wheel --quiet --no-deps --no-build-isolation -w "$folder" "$(grep '^deepspeed==' constraints.txt)" ||
  echo "no wheel of deepspeed: its tests will fail over there"
du -sh "$folder"
