#!/usr/bin/env bash
# What only a device can show, in under six minutes: the self-check, then 20 steps of DPO on a random 4-bit
# model of Qwen3-0.6B's shape, recomputed or not, traced or not (`localdpo bench`). Nothing is fetched, nothing is left behind.
#
#     PYTHON=python3 tests/device/run.sh [RESULTS.json]
#
# Without a GPU it says "not run" and ends well; SMALL=1 runs it all the same, on a much smaller model.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python="${PYTHON:-python3}"
results="${1:-}"
began=$SECONDS

device=$("$python" -c '
from localdpo.model.backend import choose_device, device_name
choose_device()
print(device_name())') || exit 1
if [ "$device" = cpu ] && [ -z "${SMALL:-}" ]; then
    echo "not run: no GPU"
    exit 0
fi
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,memory.free,driver_version --format=csv

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "== doctor --check"
# A machine that is lent has an end: what hangs, or builds kernels for long, must leave time for the steps.
limit=""; command -v timeout >/dev/null && [ -z "${SMALL:-}" ] && limit="timeout ${CHECK_SECONDS:-200}"
check=(-m localdpo doctor --check)
# CHECK_AFTER="save and load": only the checks after that one, as lines of JSON.
[ -n "${CHECK_AFTER:-}" ] && check=(-m localdpo.train.selfcheck "$folder" "$CHECK_AFTER")
$limit "$python" "${check[@]}" 2>&1 | tee "$folder/check.txt"
checked=${PIPESTATUS[0]}
echo "== doctor --check: exit code $checked after $((SECONDS - began)) s"
echo "== 20 steps of DPO"
shape=0.6b; [ -n "${SMALL:-}" ] && shape=tiny
bench=(-m localdpo bench "$shape" --steps "${STEPS:-20}" --every-way)
if [ -n "$results" ]; then
    "$python" "${bench[@]}" --json >"$results"
else
    "$python" "${bench[@]}"
fi
stepped=$?
echo "== all of it: $((SECONDS - began)) s; check $checked, steps $stepped"
[ "$checked" = 0 ] && [ "$stepped" = 0 ]
