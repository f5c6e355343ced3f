#!/usr/bin/env bash
# Trains the small model of this folder from random weights: the exact commands, about an hour and a half on two cores.
#     bash hub_cards/tiny/train.sh runs/tiny
set -euo pipefail
out=${1:-runs/tiny}
export OMP_NUM_THREADS=1

# What CLIP and Mamba-2 weights are to a large model.
python train/pretrain_tiny.py --output "$out/start"

for part in "1 --count 4800" "1.5 --count 6000" "2 --count 24000" "evaluation --count 2160"; do
    python train/make_synthetic_data.py $part --output "$out/data" --workers 2
done

stage() { # script, data, start, output, further options
    torchrun --nproc_per_node 2 "train/$1.py" --recipe tiny \
        --data "$2" --init-from "$3" --output "$4" --workers 1 --logging-steps 20 --report-to none --device cpu "${@:5}"
}
stage stage1 "llava-pretrain:$out/data/stage1.json" "$out/start" "$out/stage1" --batch-size 8
stage stage1_5 "scenewalk-videos:$out/data/stage1_5.jsonl" "$out/stage1" "$out/stage1_5" --batch-size 8
stage stage2 "llava:$out/data/stage2.json" "$out/stage1_5" "$out/stage2" --batch-size 4

# The folder without its code, which is this package.
card=hub_cards/tiny
cp "$out/stage2/"{generation_config.json,model.safetensors,tokenizer.json,chat_template.jinja,run.json} "$card"
python - "$out/stage2" "$card" <<'END'
import json, pathlib, sys

source, card = map(pathlib.Path, sys.argv[1:])

def without_code(value):
    if not isinstance(value, dict):
        return value
    return {name: without_code(part) for name, part in value.items() if name not in ("auto_map", "custom_pipelines")}

for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
    settings = without_code(json.loads((source / name).read_text()))
    (card / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
END
mkdir -p "$card/logs"
for stage in start/tower start/language stage1 stage1_5 stage2; do
    cp "$out/$stage/trainer_state.json" "$card/logs/$(basename $stage).json"
done
python eval/evaluate_scenes.py --model "$card" --data "$out/data/evaluation.json" --output "$card/evaluation.json"
python benchmarks/readme_tables.py --write
