"""Two stages at once: the preview of the next images runs while the specialist of these does."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from basisnet_jax.serving.two_stage import Answers, Previewed, TwoStageClassifier


class TwoStagePipeline:
    """A classifier's two stages, each in a thread of its own; LiteRT lets other threads run while it computes.

    Answers are those of `classifier.classify`. Use it as a context: leaving it waits for what was submitted.
    """

    def __init__(self, classifier: TwoStageClassifier) -> None:
        self._classifier = classifier
        self._previews, self._specialists = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._previews.shutdown()
        self._specialists.shutdown()

    def submit(self, images_BxHxWxC: np.ndarray) -> Future[Answers]:
        """Starts to classify images, as a camera delivers them, and returns at once.

        The specialist starts as soon as the preview of these images is done and the specialist of those before is.
        Images that exit do not wait for the specialist of images before them.
        """
        answers: Future[Answers] = Future()
        answers.set_running_or_notify_cancel()  # so it cannot be cancelled
        previewing = self._previews.submit(self._classifier.preview_stage, images_BxHxWxC)

        def finish() -> None:
            try:
                answers.set_result(self._classifier.specialist_stage(images_BxHxWxC, previewing.result()))
            except Exception as error:
                answers.set_exception(error)

        def after_preview(previewed: Future[Previewed]) -> None:
            if previewed.exception() or previewed.result().exits_B.all():
                finish()
            else:
                self._specialists.submit(finish)

        previewing.add_done_callback(after_preview)
        return answers

    def map(self, batches: Iterable[np.ndarray], ahead: int = 4) -> Iterator[Answers]:
        """Yields the answers on each batch of images in order, while up to `ahead` batches are being classified."""
        started: deque[Future[Answers]] = deque()
        for images_BxHxWxC in batches:
            started.append(self.submit(images_BxHxWxC))
            if len(started) > ahead:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
