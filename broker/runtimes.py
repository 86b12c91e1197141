"""How long a lane's batches run, learned from the workers' `Done`: prediction by rows, and how far to trust it.

One running mean for each power of two of rows, and a straight line (fixed time + time per row) through the smallest
and the largest size seen. The means carry what is not straight (caches, vector widths, padding); the line carries
predictions to sizes not seen yet and tells whether rows or the batch itself cost the time.
"""

from __future__ import annotations

from ringserve.broker.policy import MILLISECOND_NS

#: A mean follows changes within about this many batches.
_MEMORY_BATCHES = 16

#: A single run counts as at most this many times its mean: a descheduled worker is not a slower model. A model that
#: did become slower gets there in a few batches all the same.
_OUTLIER_TIMES = 4.0

#: Predictions are acted on against a client (refusals) only from this many batches on, and below this mean error.
_CONFIDENT_BATCHES = 16
_CONFIDENT_ERROR = 0.5


class RunTimes:
    """Run times of one lane. Unknown (nothing observed) is the prediction 0.

    fixed_ns, row_ns: the line. Until two sizes are known all time is taken as row time: that guess makes the broker
    try another size, and so corrects itself; the opposite guess would never be tested.
    """

    __slots__ = ("_error", "_means", "_samples", "fixed_ns", "row_ns", "turnaround_ns")

    def __init__(self) -> None:
        self._means: dict[int, list[float]] = {}  # bit length of rows -> [samples, mean rows, mean run_ns]
        self._samples = 0
        self._error = 1.0
        self.fixed_ns = 0.0
        self.row_ns = 0.0
        #: Time from a batch's start to its settling beyond its run: messages, scheduling, scattering results.
        self.turnaround_ns = 0.0

    @property
    def known(self) -> bool:
        return self._samples > 0

    @property
    def confident(self) -> bool:
        return self._samples >= _CONFIDENT_BATCHES and self._error < _CONFIDENT_ERROR

    def observe(self, rows: int, run_ns: int, held_ns: int) -> None:
        """A batch of `rows` ran `run_ns` inside TensorFlow; its worker was held by it for `held_ns`."""
        size = rows.bit_length()
        mean = self._means.get(size)
        if mean is None:
            self._means[size] = [1.0, float(rows), float(run_ns)]
        else:
            predicted = mean[2] + self.row_ns * (rows - mean[1])
            if predicted > 0.0:
                self._error += (min(abs(run_ns - predicted) / predicted, 1.0) - self._error) / _MEMORY_BATCHES
            if mean[0] == 1.0 and run_ns < mean[2] / 2:
                mean[1:] = [float(rows), float(run_ns)]  # the first run was a cold one, forget it
            else:
                gain = max(1.0 / (mean[0] + 1.0), 1.0 / _MEMORY_BATCHES)
                mean[1] += (rows - mean[1]) * gain
                mean[2] += (min(run_ns, _OUTLIER_TIMES * mean[2]) - mean[2]) * gain
            mean[0] += 1.0
        self._samples += 1
        beyond_ns = min(max(held_ns - run_ns, 0), 10 * MILLISECOND_NS)
        self.turnaround_ns += (beyond_ns - self.turnaround_ns) / min(self._samples, _MEMORY_BATCHES)
        self._fit()

    def _fit(self) -> None:
        means = self._means
        if len(means) == 1:
            (only,) = means.values()
            self.fixed_ns, self.row_ns = 0.0, only[2] / only[1]
            return
        small, large = means[min(means)], means[max(means)]
        self.row_ns = max(0.0, (large[2] - small[2]) / (large[1] - small[1]))
        self.fixed_ns = max(0.0, small[2] - self.row_ns * small[1])

    def predict(self, rows: int) -> int:
        """Predicted run time of a batch of `rows` in ns; 0 when nothing is known."""
        mean = self._means.get(rows.bit_length())
        if mean is not None:
            return max(1, int(mean[2] + self.row_ns * (rows - mean[1])))
        if not self._means:
            return 0
        return max(1, int(self.fixed_ns + self.row_ns * rows))
