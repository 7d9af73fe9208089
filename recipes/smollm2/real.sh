#!/bin/sh
# make real: SmolLM2-135M-Instruct learns from its own answers to keep to instructions, and is measured.
# Run it again after any interruption: every step goes on where it ended. SEED is that of sampling and training;
# PROMPTS and HELD_OUT say how many are trained and measured on.
#
#   recipes/smollm2/real.sh path/to/SmolLM2-135M-Instruct.Q4_1.gguf
set -eu
gguf=$1
seed=${SEED:-0}
prompts=${PROMPTS:-480}
held_out=${HELD_OUT:-300}
bin=${BIN:-.venv/bin}
here=recipes/smollm2
work=build/smollm2
pairs=$work/pairs-$seed
run=smollm2-$seed

[ -d $work/model ] || "$bin/localdpo" import "$gguf" $work/model
[ -f $work/prompts/unseen.jsonl ] || "$bin/python" $here/prompts.py $work/prompts

# Four answers to each prompt; the one that keeps to most of its constraints against a worse one. Those that are
# too short are left out on both sides: else the model learns a length.
"$bin/localdpo" prefs build $work/prompts/train.jsonl --out "$pairs" --recipe $here/dpo.yaml \
    --judge constraints -n 4 --temperatures 0.8 --max-tokens 80 --min-words 6 --limit "$prompts" --seed "$seed" \
    --valid-count 0

# Training outlives a script that was killed: wait for its end.
if [ -d "runs/$run" ]; then "$bin/localdpo" watch "$run" --plain >/dev/null || true; fi
"$bin/localdpo" train $here/dpo.yaml --plain --run "$run" \
    data.train="$pairs/train.jsonl" train.seed="$seed"

for part in heldout unseen; do
    "$bin/localdpo" eval "$run" --prompts $work/prompts/$part.jsonl --limit "$held_out" --name $part \
        --checks $here/checks.yaml --judge constraints --no-scores \
        --temperature 0.7 --max-tokens 96 --seed "$seed"
done
"$bin/localdpo" compare "$run" --plain --prompts $work/prompts/heldout.jsonl --limit 2 \
    --temperature 0.7 --max-tokens 96 --seed "$seed"
"$bin/python" $here/perplexity.py "$run"
"$bin/localdpo" report "$run"
