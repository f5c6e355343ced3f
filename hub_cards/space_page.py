"""The web page: drop a video, see it watched, ask. Layout and events; `space_viewer.py` does the work.

launch("tiny")
"""

import html
from pathlib import Path
from tempfile import TemporaryDirectory

from modeling_video_ma2mba.hub_cards.space_samples import Sample, make_samples
from modeling_video_ma2mba.hub_cards.space_sessions import Session, Sessions
from modeling_video_ma2mba.hub_cards.space_viewer import Limits, Progress, Viewer, clock
from modeling_video_ma2mba.processing.load_model import load_model

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('the web page needs gradio: pip install "video-ma2mba[demo]"') from error

PEOPLE_WAITING = 32
IDLE_CHECK_SECONDS = 60
EVERYTHING = "Questions are about everything that was seen. Click a picture of the timeline to go back in time."
CSS = """
.gradio-container {max-width: 1200px !important}
#timeline .grid-container {grid-template-columns: repeat(12, minmax(0, 1fr))}
#timeline .caption-label {font-size: 11px; padding: 0 4px}
#progress progress {width: 100%; height: 10px}
"""


class Page:
    """The page of one model. `blocks` is what gradio serves.

    Args:
        model, processor: of `load_model`.
        limits: what one person may use.
        samples: videos to choose from.
    """

    def __init__(self, model, processor, limits: Limits, samples: list[Sample]):
        self.viewer = Viewer(model, processor, limits)
        self.sessions = Sessions(limits.idle_seconds)
        self.samples = samples
        self.blocks = self._build()

    def _build(self) -> gr.Blocks:
        limits = self.viewer.limits
        with gr.Blocks(
            title="Video-Ma²mba",
            analytics_enabled=False,  # nothing leaves the machine
            # for what gradio keeps by itself: a file uploaded and never watched
            delete_cache=(IDLE_CHECK_SECONDS, int(limits.idle_seconds)),
        ) as blocks:
            gr.Markdown(
                "# Video-Ma²mba\n"
                "Drop a video or choose a sample. It is watched once, into a memory of fixed size; then ask as often "
                f"as you like. Up to {limits.video_seconds / 60:.0f} minutes and {limits.upload_bytes // 2**20} MiB. "
                f"Files are removed when you leave, or {limits.idle_seconds / 60:.0f} minutes after your last click."
            )
            with gr.Row():
                with gr.Column():
                    video = gr.Video(label="Video", sources=["upload"], height=300, autoplay=True, elem_id="video")
                    with gr.Row():
                        chosen = [gr.Button(sample.name, size="sm", min_width=100) for sample in self.samples]
                    progress = gr.HTML(_progress_line(None), elem_id="progress")
                    stop = gr.Button("Stop watching, keep what was seen", size="sm")
                with gr.Column():
                    talk = gr.Chatbot(
                        label="Questions, each on its own", height=330, render_markdown=False, buttons=[],
                        feedback_options=None, elem_id="talk",
                    )  # fmt: skip
                    about = gr.Markdown(EVERYTHING, elem_id="about")
                    everything = gr.Button("Ask about everything again", size="sm", visible=False)
                    with gr.Row():
                        question = gr.Textbox(
                            show_label=False, placeholder="What happens?", scale=4, elem_id="question",
                            max_length=limits.question_letters,
                        )  # fmt: skip
                        ask = gr.Button("Ask", variant="primary", min_width=80, scale=1, elem_id="ask")
                    to_try = gr.Dataset(
                        label="Questions to try", components=[gr.Textbox(visible=False)], samples=[], visible=False
                    )
                    with gr.Row():
                        download = gr.DownloadButton("Save the memory", size="sm", interactive=False, elem_id="save")
                        opened = gr.UploadButton("Open a memory", file_types=[".safetensors"], size="sm")

            timeline = gr.Gallery(
                label="Timeline: click to ask as of that time", columns=12, allow_preview=False, interactive=False,
                buttons=[], object_fit="contain", elem_id="timeline",
            )  # fmt: skip

            private = {"api_visibility": "private"}
            alone = {"concurrency_limit": 1, **private}  # people wait in turn
            seen = [progress, timeline, download, about, everything, talk]
            watches = [
                button.click(
                    lambda sample=sample: (sample.path, gr.Dataset(samples=_rows(sample.questions), visible=True)),
                    outputs=[video, to_try],
                    show_progress="hidden",
                    **private,
                ).then(
                    self._sample_watcher(sample), outputs=seen, concurrency_id="watch", show_progress="hidden", **alone
                )
                for button, sample in zip(chosen, self.samples)
            ]
            watches.append(
                video.upload(
                    self.watch_upload, video, [*seen, to_try], concurrency_id="watch", show_progress="hidden", **alone
                )
            )
            stop.click(lambda: None, cancels=watches, **private).then(self.end_watch, outputs=download, **private)
            timeline.select(self.look_back, outputs=[about, everything, video], show_progress="hidden", **private)
            everything.click(self.look_at_everything, outputs=[about, everything], show_progress="hidden", **private)
            answering = {"fn": self.ask, "inputs": [question, talk], "outputs": [question, talk], **alone}
            gr.on([ask.click, question.submit], concurrency_id="ask", show_progress="minimal", **answering)
            to_try.click(lambda row: row[0], to_try, question, show_progress="hidden", **private).then(
                concurrency_id="ask", show_progress="minimal", **answering
            )
            opened.upload(self.open_memory, opened, [*seen, video, to_try], show_progress="hidden", **private)
            blocks.unload(self.leave)
        return blocks

    def launch(self, port: int | None = None, **options) -> None:
        """Serve the page until the process ends; `options` are gradio's."""
        self.sessions.watch_over(IDLE_CHECK_SECONDS)
        # Served from where they are: gradio keeps no copies of them, which would outlive the session.
        gr.set_static_paths([self.sessions.folder, *(sample.path for sample in self.samples)])
        # The system's own fonts: gradio's themes fetch theirs from the internet.
        theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        self.blocks.queue(max_size=PEOPLE_WAITING).launch(
            server_port=port,
            max_file_size=self.viewer.limits.upload_bytes,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            theme=theme,
            css=CSS,
            **options,
        )

    # Events. gradio gives the request, which says whose page it is.

    def _sample_watcher(self, sample: Sample):
        def watch(request: gr.Request):
            yield from self._watch(self.sessions.get(request.session_hash), str(sample.path))

        return watch

    def watch_upload(self, path: str, request: gr.Request):
        session = self.sessions.get(request.session_hash)
        session.uploads.add(path)
        for update in self._watch(session, path):
            yield *update, gr.Dataset(visible=False)

    def _watch(self, session: Session, path: str):
        """Yield progress, timeline, download, about, everything, talk."""
        yield _progress_line(None), [], gr.DownloadButton(interactive=False), *_about(None), []
        same = gr.skip()
        state = None
        try:
            for state in self.viewer.watch(session, path):
                pictures = _pictures(session) if state.has_new_moment else same
                yield _progress_line(state), pictures, same, same, same, same
        except ValueError as error:
            note = html.escape(str(error))
            yield f"<b>{note}</b>", _pictures(session), self.end_watch_of(session), same, same, same
            raise gr.Error(note, print_exception=False) from error
        yield _progress_line(state, is_over=True), same, self.end_watch_of(session), same, same, same

    def end_watch(self, request: gr.Request):
        return self.end_watch_of(self.sessions.get(request.session_hash))

    def end_watch_of(self, session: Session):
        path = self.viewer.save_memory(session)
        return gr.DownloadButton(value=path, interactive=path is not None)

    def look_back(self, event: gr.SelectData, request: gr.Request):
        session = self.sessions.get(request.session_hash)
        moment = self.viewer.look_back(session, event.index)
        # The moment's picture is the last one before it.
        position = max(0.0, moment.seconds - 1 / self.viewer.processor.fps)
        return *_about(moment.seconds), gr.Video(playback_position=position)

    def look_at_everything(self, request: gr.Request):
        self.viewer.look_back(self.sessions.get(request.session_hash), None)
        return _about(None)

    def ask(self, question: str, talk: list, request: gr.Request):
        """Yield the question box, emptied, and the talk, as the answer comes."""
        try:
            session = self.sessions.get(request.session_hash)
            memory = self.viewer.memory_asked(session)
            after = "" if session.as_of is None else f" [as of {clock(memory.seconds_seen)}]"
            begun = [*talk, {"role": "user", "content": question + after}]
            for said in self.viewer.answer(memory, question):
                yield "", [*begun, {"role": "assistant", "content": said or "(no answer)"}]
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def open_memory(self, path: str, request: gr.Request):
        """Return what `_watch` yields, then the video and the questions to try, both emptied."""
        session = self.sessions.get(request.session_hash)
        session.uploads.add(path)
        try:
            memory = self.viewer.open_memory(session, path)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        line = f"Opened a memory of {clock(memory.seconds_seen)} of video, {memory.frames_seen} frames."
        return line, [], self.end_watch_of(session), *_about(None), [], None, gr.Dataset(visible=False)

    def leave(self, request: gr.Request) -> None:
        self.sessions.close(request.session_hash)


def _progress_line(state: Progress | None, is_over: bool = False) -> str:
    if state is None:
        return "<progress value='0' max='1'></progress><br>Nothing is being watched."
    verb = "Watched" if is_over else "Watching:"
    note = f" ({html.escape(state.note)})" if state.note else ""
    return (
        f"<progress value='{state.seconds:.1f}' max='{state.total:.1f}'></progress><br>"
        f"{verb} {clock(state.seconds)} of {clock(state.total)}, {state.frames} frames, {state.speed:.1f} seconds of "
        f"video per second{note}"
    )


def _pictures(session: Session) -> list:
    return [(moment.picture, clock(moment.seconds)) for moment in session.timeline]


def _about(seconds: float | None):
    """Return the line that says what questions are about, and the button back to everything."""
    if seconds is None:
        return EVERYTHING, gr.Button(visible=False)
    return f"**As of {clock(seconds)}**: answers know nothing of what came later.", gr.Button(visible=True)


def _rows(questions: tuple[str, ...]) -> list[list[str]]:
    return [[question] for question in questions]


def launch(model_path: str, device: str = "auto", dtype: str = "auto", port: int | None = None) -> None:
    """Load a model and serve its page until the process ends."""
    model, processor = load_model(model_path, device, dtype)
    with TemporaryDirectory(prefix="video-ma2mba-samples-") as folder:
        page = Page(model, processor, Limits(), make_samples(Path(folder)))
        try:
            page.launch(port)
        finally:
            page.sessions.close_all()
