#!/usr/bin/env bash
# Everything that only a GPU can show, in one go and without a network: the GPU tests, then the tables of a training step
# (bf16, compiled blocks), of a checkpoint's stall and of a masked autoencoder fed with JPEGs. Ten minutes on one H100.
#
#   benchmarks/on_gpu.sh OUT          writes OUT/on_gpu.md (commit it under benchmarks/results/) and OUT/tests.log
#   WHEELS=.whl benchmarks/on_gpu.sh OUT    installs what the image lacks from there first (benchmarks/wheels.sh)
#
# A part that fails or takes too long leaves its last lines in the results, and the others still run. On a machine
# without a GPU everything runs small, which shows that the script works and nothing else.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?say where the results go: benchmarks/on_gpu.sh OUT}
python=${PYTHON:-python3}
mkdir -p "$out"
results=$out/on_gpu.md

if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH=$site:${PYTHONPATH:-}
fi
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 WANDB_MODE=disabled OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 1

part() {  # TITLE FILE SECONDS COMMAND…: the command's table, or the end of what it said
  local title=$1 file=$2 limit=$3 log=$out/${2%.md}.log begun=$SECONDS
  shift 3
  rm -f "$out/$file"
  if timeout "$limit" "$@" >"$log" 2>&1; then
    echo "$title: $((SECONDS - begun)) s"
  else
    echo "$title: failed with status $? after $((SECONDS - begun)) s, see $log"
    printf '# %s failed\n\n```\n%s\n```\n\n' "$title" "$(tail -n 15 "$log")" >>"$results"
  fi
  [ ! -f "$out/$file" ] || { cat "$out/$file"; echo; } >>"$results"
}

: >"$results"
beside=()
[ "$gpu" = 0 ] || beside=(-n 8)  # processes beside each other, all on the one GPU
part "GPU tests" tests.md 200 "$python" -m pytest -o addopts=-q "${beside[@]}" tests/end_to_end/test_on_a_gpu.py
printf '# GPU tests\n\n%s\n\n' "$(grep -E "[0-9]+ (passed|failed|skipped|error)" "$out/tests.log" | tail -n 1)" >>"$results"
if [ "$gpu" = 1 ]; then
  part "training step" step.md 90 "$python" -m benchmarks.training_step --precision bf16 --output "$out/step.md"
  part "compiled step" compiled.md 120 "$python" -m benchmarks.training_step --precision bf16 --compile block \
    --output "$out/compiled.md"
else
  part "training step" step.md 200 "$python" -m benchmarks.training_step --models vit_mae --batch 1 --rounds 1 --steps 1 \
    --output "$out/step.md"
fi
part "checkpoint stall" stall.md 40 "$python" -m benchmarks.checkpoint_stall --layers $((gpu ? 192 : 2)) \
  --output "$out/stall.md"
part "stream-fed MAE" mae.md 130 "$python" -m benchmarks.stream_fed_mae --output "$out/mae.md"
echo "results: $results"
