#!/bin/bash
# The effect of the Mixup term on all of Alpaca, with as many seeds as fit ten minutes of one GPU. In the root of the repository:
#
#   MODEL=smollm2-135m LR=1e-4 DATA=alpaca_data.json bash experiments/2026-11-29_study/gpu.sh
#   MODEL=gemma-3-270m LR=5e-5 TEMPLATE=alpaca DATA=alpaca_data.json bash experiments/2026-11-29_study/gpu.sh
#
# One reference of seed 1000 scores for all seeds. Each seed then tunes SFTMix and mu=0. A run that the time limit stops has
# saved its training state: the same command goes on. EPOCHS=1 fits three times the seeds. DEVICE=cpu LIMIT=300 tries the script.
set -u
PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-gpu} OUT=${OUT:-out/study} SECONDS_LEFT=${SECONDS_LEFT:-570}
: "${MODEL:?a model folder}" "${DATA:?alpaca_data.json}" "${LR:?the learning rate}"
export PYTHONPATH=src PYTHONUNBUFFERED=1
mkdir -p "$OUT"

# every seed trains on all examples, so that all seeds share the reference and the subsets
COMMON="model=local data=alpaca data.val_fraction=0.02 data.num_checkpoints=${CHECKPOINTS:-3} data.epochs=${EPOCHS:-3}
  data.path=$DATA data.template=${TEMPLATE:-tokenizer} data.limit=${LIMIT:-null} model.path=$MODEL model.lr=$LR
  reference.seed=1000 trainer=$DEVICE trainer.progress_bar=false root=$OUT"
for seed in ${SEEDS:-0 1 2 3 4 5 6 7 8 9}; do
  for mu in 0.2 0; do
    left=$((SECONDS_LEFT - SECONDS))
    [ $left -gt 20 ] || break 2
    timeout -k 15 -s TERM $left $PYTHON train.py $COMMON recipe=sftmix recipe.mixup.mu=$mu seed=$seed \
      > "$OUT/mu$mu-seed$seed.txt" 2>&1
    code=$?
    echo "mu $mu, seed $seed: exit $code after $SECONDS s"
    [ $code -eq 0 ] || { tail -3 "$OUT/mu$mu-seed$seed.txt"; break 2; }
  done
done
A=$(ls -d "$OUT"/sftmix-*-mu0.2-seed0-* 2> /dev/null | grep -v partial | head -1)
B=$(ls -d "$OUT"/sftmix-*-mu0-seed0-* 2> /dev/null | grep -v partial | head -1)
[ -n "$A" ] && [ -n "$B" ] && $PYTHON report.py "compare=[$A,$B]" root="$OUT" | tee "$OUT/compare.txt"
