#!/bin/bash
# The first ten minutes on one GPU, in the order of what fails first. Run it in the root of the repository:
#
#   PYTHON=.venv/bin/python bash benchmarks/first_gpu.sh
#
# Every step has its output in a file. The script ends with 1 if a step has failed, and writes a record of all of them to
# experiments/DATE_first_gpu/README.md. DEVICE=cpu tries the script itself, with small models.
set -u
PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-cuda} OUT=${OUT:-out/first_gpu}
export PYTHONPATH=src PYTHONUNBUFFERED=1
rm -rf "$OUT" && mkdir -p "$OUT" || exit 1
: > "$OUT/steps.tsv"
FAILED=0

step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  timeout -k 5 "$limit" "$@" > "$OUT/$name.txt" 2>&1
  code=$?
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" >> "$OUT/steps.tsv"
  echo "$name: exit $code, $((SECONDS - start)) s"
  [ $code -eq 0 ] || { FAILED=1; tail -5 "$OUT/$name.txt"; }
}

if [ "$DEVICE" = cuda ]; then
  GPU="trainer=gpu" FSDP="trainer=fsdp trainer.devices=1" DDP="trainer=ddp trainer.devices=1 trainer.compile=true"
  BLOCKS="--layers 8 --tokens 8192 --length 1024"
else
  GPU="trainer=cpu" FSDP="trainer=fsdp trainer.devices=1" DDP="trainer=ddp trainer.devices=1"
  BLOCKS="--device cpu --hidden 128 --layers 2 --vocab 512 --tokens 256 --length 64 --steps 6"
fi
RUN="$PYTHON train.py trainer.progress_bar=false trainer.log_every_n_steps=1"

step 00_environment 60 $PYTHON -c 'import torch, transformers, lightning, peft
gpu = torch.cuda.is_available()
print("torch", torch.__version__, "transformers", transformers.__version__, "lightning", lightning.__version__, "peft", peft.__version__)
print(torch.cuda.get_device_name() if gpu else "no GPU", "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())'
cat "$OUT/00_environment.txt"

# the fused loss: bfloat16 products with float32 sums
step 01_loss 90 $PYTHON benchmarks/gpu_loss.py --device $DEVICE

# whole pipelines on the embedded model and data
step 02_single 120 $RUN $GPU data.demo.num_examples=300 root="$OUT/single"
step 03_fsdp 120 $RUN $FSDP data.demo.num_examples=300 root="$OUT/fsdp"
step 04_lora 100 $RUN $GPU model/lora=default recipe=ntp data.demo.num_examples=200 root="$OUT/lora"
step 05_lora_fsdp 100 $RUN $FSDP model/lora=default recipe=ntp data.demo.num_examples=200 root="$OUT/lora_fsdp"
step 06_ddp_compile 150 $RUN $DDP recipe=ntp recipe.neftune_alpha=5 data.demo.num_examples=200 root="$OUT/ddp"
step 07_flash 100 $RUN $GPU trainer.attention=torch_varlen recipe=ntp data.demo.num_examples=200 root="$OUT/flash"
grep -h '"attention"' "$OUT"/{single,flash}/ntp*/run.json 2> /dev/null

# a stop in the middle, and the same command again
stop_and_resume() {
  local command="$RUN $FSDP recipe=ntp data.demo.num_examples=3000 root=$OUT/stop" pid code
  $command & pid=$!
  for _ in $(seq 300); do sleep 0.2; ls "$OUT"/stop/*/logs/metrics.csv > /dev/null 2>&1 && break; done
  sleep 3; kill -TERM $pid; wait $pid; code=$?
  echo "stopped with exit code $code, expected 75"
  [ $code -eq 75 ] && $command
}
export -f stop_and_resume
export RUN FSDP OUT
step 08_stop_and_resume 150 bash -c stop_and_resume

# every way of taking a step gives the same step
step 09_certify 240 $RUN $GPU mode=certify data.demo.num_examples=200 root="$OUT/certify"

# suites on the GPU
step 10_evaluate 100 $PYTHON eval.py root="$OUT/single" suite=all judge=fake limit=5 progress_bar=false

# blocks of 8B: time, waits for the device, peak memory beside the prediction
step 11_blocks_sdpa 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp
step 12_blocks_ntp 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp --ntp
step 13_blocks_flash 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp --attention torch_varlen
step 14_blocks_checkpointing 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp --attention torch_varlen --checkpointing
step 15_blocks_padded 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp --layout padded
step 16_blocks_single 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --attention torch_varlen
step 17_blocks_lora 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --attention torch_varlen --lora
step 18_blocks_lengths 90 $PYTHON benchmarks/gpu_step.py $BLOCKS --strategy fsdp --vary

# Mixup's cost with an 8B-shaped head, and TRL beside it if it is installed
[ "$DEVICE" = cuda ] && step 19_head 90 $PYTHON benchmarks/mixup_cost.py --head 128256 4096
[ "$DEVICE" = cuda ] && $PYTHON -c 'import trl' 2> /dev/null && step 20_trl 120 $PYTHON benchmarks/throughput.py

$PYTHON - "$OUT" << 'PYTHON_CODE'
import datetime, json, pathlib, sys

out = pathlib.Path(sys.argv[1])
lines = ["# First run on a GPU", "", (out / "00_environment.txt").read_text().strip(), ""]
lines += ["| step | exit | seconds | what came out |", "|---|---|---|---|"]
shown = ("ms", "tokens_per_sec", "peak_gib", "predicted_gib", "waits", "errors")
for line in (out / "steps.tsv").read_text().splitlines():
    name, code, seconds = line.split("\t")
    text = (out / f"{name}.txt").read_text(errors="replace").strip().splitlines()
    last = text[-1] if text else ""
    try:
        found = {key: value for key, value in json.loads(last).items() if key in shown}
        last = ", ".join(f"{key} {value}" for key, value in found.items())
    except (ValueError, AttributeError):
        last = last[:100] if code != "0" else ""
    lines.append(f"| {name} | {code} | {seconds} | {last.replace('|', '/')} |")
lines += ["", "Command: `bash benchmarks/first_gpu.sh`", ""]
record = pathlib.Path("experiments") / f"{datetime.date.today()}_first_gpu" / "README.md"
if "no GPU" in lines[2]:
    record = out / "README.md"
record.parent.mkdir(parents=True, exist_ok=True)
record.write_text("\n".join(lines))
print(f"record: {record}")
PYTHON_CODE
exit $FAILED
