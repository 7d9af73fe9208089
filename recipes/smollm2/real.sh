#!/bin/sh
# make real: SmolLM2-135M-Instruct learns from its own answers to keep to instructions, and is measured.
# Run it again after any interruption: every step goes on where it ended. SEED is that of sampling and training;
# ROUNDS says how many rounds are made, PROMPTS and HELD_OUT how many prompts are trained and measured on.
#
#   recipes/smollm2/real.sh path/to/SmolLM2-135M-Instruct.Q4_1.gguf
set -eu
gguf=$1
seed=${SEED:-0}
rounds=${ROUNDS:-1}
prompts=${PROMPTS:-480}
held_out=${HELD_OUT:-300}
bin=${BIN:-.venv/bin}
here=recipes/smollm2
work=build/smollm2
series=smollm2-$seed

[ -d $work/model ] || "$bin/localdpo" import "$gguf" $work/model
[ -f $work/prompts/unseen.jsonl ] || "$bin/python" $here/prompts.py $work/prompts

"$bin/localdpo" rounds $here/dpo.yaml --plain --run "$series" --rounds "$rounds" \
    train.seed="$seed" rounds.limit="$prompts" rounds.held_out="$held_out"

# The last round beside the base, the round before and those before that.
last=0
others=
while [ -d "runs/$series/round-$((last + 1))" ]; do
    last=$((last + 1))
    [ "$last" -lt 3 ] || others="$others --with $series/round-$((last - 2))"
done
run=$series/round-$last
for part in heldout unseen; do
    # shellcheck disable=SC2086 - one word for each option
    "$bin/localdpo" eval "$run" $others --prompts $work/prompts/$part.jsonl --limit "$held_out" --name $part \
        --checks $here/checks.yaml --judge constraints --no-scores \
        --temperature 0.7 --max-tokens 96 --seed "$seed"
done
"$bin/python" $here/perplexity.py "$run"
"$bin/localdpo" compare "$run" --plain --prompts $work/prompts/heldout.jsonl --limit 2 \
    --temperature 0.7 --max-tokens 96 --seed "$seed"
"$bin/localdpo" report "$run"
"$bin/localdpo" report "$series"
