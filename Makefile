# One command each: `make demo` asks the small shipped model; `make test` runs the tests.
# Both make their own virtual environments. TORCH may name another build: `make demo TORCH=torch` takes the newest.
PYTHON ?= python3
TORCH ?= torch==2.13.0
NEWEST = .venv
OLDEST = .venv-5.17

# Two at a time, each on one thread: two threads of torch wait for one another where other programs run.
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-newest test-oldest test-slow lint clean

demo: $(NEWEST)/.installed
	$(NEWEST)/bin/video-ma2mba demo

test: lint test-newest test-oldest

test-newest: $(NEWEST)/.installed-tests
	$(call PYTEST,$(NEWEST)) -m "not slow and not gpu"

# The other end of the supported transformers range: loading, processor, generate, pipeline, training, checkpointing's
# interface. What does not touch transformers (the planner and the engine's insides) runs on the newest only.
test-oldest: $(OLDEST)/.installed
	$(call PYTEST,$(OLDEST)) -m "not slow and not gpu and not triton_interpreter" tests/modeling_video_ma2mba \
		$(addprefix tests/train/test_,collator.py lora.py new_words.py parameter_groups.py recipes.py run_stage.py trainer.py \
		training_arguments.py video_ma2mba_trainer.py) tests/processing/test_processing_video_ma2mba.py --ignore-glob="*/test_checkpoint_*.py" --ignore-glob="*/test_ssd.py"

test-slow: $(NEWEST)/.installed-tests
	$(call PYTEST,$(NEWEST)) -m slow

lint: $(NEWEST)/.installed-tests
	$(NEWEST)/bin/ruff check .
	$(NEWEST)/bin/ruff format --check .

$(NEWEST)/.installed: pyproject.toml .ci/constraints-newest.txt Makefile
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet "$(TORCH)" -c .ci/constraints-newest.txt
	$(NEWEST)/bin/python -m pip install --quiet -e . -c .ci/constraints-newest.txt
	touch $@

# The Triton kernels are tested in Triton's interpreter: mamba-ssm is installed without its CUDA parts; of lmms-eval its
# interface, without the models and tools it needs to run.
$(NEWEST)/.installed-tests: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pip install --quiet -e ".[dev,decord,eval]" triton einops ninja setuptools wheel -c .ci/constraints-newest.txt
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
		$(NEWEST)/bin/python -m pip install --quiet --no-build-isolation --no-deps mamba-ssm==2.3.2.post1
	$(NEWEST)/bin/python -m pip install --quiet --no-deps lmms-eval loguru pytz -c .ci/constraints-newest.txt
	touch $@

$(OLDEST)/.installed: pyproject.toml .ci/constraints-5.17.txt Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "$(TORCH)" -c .ci/constraints-5.17.txt
	$(OLDEST)/bin/python -m pip install --quiet -e ".[dev]" -c .ci/constraints-5.17.txt
	touch $@

clean:
	rm -rf $(NEWEST) $(OLDEST) runs build *.egg-info
