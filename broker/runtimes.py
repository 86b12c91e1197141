"""How long a lane's batches run, learned from the workers' `Done`: prediction by rows, and how far to trust it.

One running mean for each power of two of rows, and a straight line (fixed time + time per row) through the smallest
size seen and the largest one of late. The means carry what is not straight (caches, vector widths, padding); the line
carries predictions to sizes not seen yet and tells whether rows or the batch itself cost the time.
"""

from __future__ import annotations

from math import ceil

from ringserve.broker.policy import MILLISECOND_NS, ROWS_ANY

#: A mean follows changes within about this many batches.
_MEMORY_BATCHES = 16

#: A single run counts as at most this many times its mean: a descheduled worker is not a slower model. A model that
#: did become slower gets there in a few batches all the same.
_OUTLIER_TIMES = 4.0

#: Predictions are acted on against a client (refusals) only from this many batches on, and below this mean error.
_CONFIDENT_BATCHES = 16
_CONFIDENT_ERROR = 0.5

#: A batch has enough rows when more would make each of them cheaper by at most this part.
_ENOUGH_GAIN = 0.05

#: What a batch costs all processes together beside its run, in CPU time of busy cores: more requests come and go one by
#: one when answers do. (Measured with the convolution net: 0.27 ms a row with two rows a batch.) The turnaround would
#: say too much: it is mostly waiting, which a worker that was sent its next batch ahead does not notice.
_BATCH_NS = 600_000

#: So many runs of a size tell what it takes; of the first ones each may be some worker's first.
_KNOWN_RUNS = 8

#: What a size was seen to take counts, and limits larger ones, for so many batches of the lane; then this many times as
#: many rows are tried again, as a batch that is never run is never measured.
_FRESH_BATCHES = 256
_TRY_TIMES = 4

#: The line holds for sizes up to so many times the largest one in it: an ordinary batch has so many rows more than a
#: lone request. A request of a million rows is beyond what runs of one row tell: what they took is not a row's time.
_REACH_TIMES = 128


class RunTimes:
    """Run times of one lane. Unknown (nothing observed) is the prediction 0.

    fixed_ns, row_ns: the line. Until two sizes are known all time is taken as row time: that guess makes the broker
    try another size, and so corrects itself; the opposite guess would never be tested.
    rows_reach: the line says nothing of batches of more rows.
    """

    __slots__ = ("_error", "_means", "_samples", "fixed_ns", "row_ns", "rows_reach", "turnaround_ns")

    def __init__(self) -> None:
        #: bit length of rows -> [samples, mean rows, mean run_ns, number of the batch that was the last of this size]
        self._means: dict[int, list[float]] = {}
        self._samples = 0
        self._error = 1.0
        self.fixed_ns = 0.0
        self.row_ns = 0.0
        self.rows_reach = 0
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
        self._samples += 1
        size = rows.bit_length()
        mean = self._means.get(size)
        if mean is None:
            mean = self._means[size] = [1.0, float(rows), float(run_ns), self._samples]
        else:
            predicted = mean[2] + self.row_ns * (rows - mean[1])
            if predicted > 0.0:
                self._error += (min(abs(run_ns - predicted) / predicted, 1.0) - self._error) / _MEMORY_BATCHES
            is_doubtful = mean[0] < _KNOWN_RUNS or self._samples - mean[3] > _FRESH_BATCHES
            if is_doubtful and run_ns < mean[2] / 2:
                mean[1:3] = [float(rows), float(run_ns)]  # the runs before were cold ones (one a worker), forget them
            else:
                gain = max(1.0 / (mean[0] + 1.0), 1.0 / _MEMORY_BATCHES)
                mean[1] += (rows - mean[1]) * gain
                mean[2] += (min(run_ns, _OUTLIER_TIMES * mean[2]) - mean[2]) * gain
            mean[0] += 1.0
            mean[3] = self._samples
        beyond_ns = min(max(held_ns - run_ns, 0), 10 * MILLISECOND_NS)
        self.turnaround_ns += (beyond_ns - self.turnaround_ns) / min(self._samples, _MEMORY_BATCHES)
        self._fit(mean)

    def _fit(self, latest: list[float]) -> None:
        """latest: the mean of the size that ran just now. Once a batch, so without the cost of `min` and `max`."""
        # What one large batch once took, the first one perhaps, must not keep batches small for ever: so it would never
        # be measured again.
        stale = self._samples - _FRESH_BATCHES
        small = large = latest
        for mean in self._means.values():
            if mean[1] < small[1]:
                small = mean
            elif mean[1] > large[1] and mean[3] > stale:
                large = mean
        self.rows_reach = int(large[1]) * _REACH_TIMES
        if small is large:
            self.fixed_ns, self.row_ns = 0.0, small[2] / small[1]
            return
        self.row_ns = max(0.0, (large[2] - small[2]) / (large[1] - small[1]))
        self.fixed_ns = max(0.0, small[2] - self.row_ns * small[1])

    def predict(self, rows: int) -> int:
        """Predicted run time of a batch of `rows` in ns; 0 when nothing is known."""
        mean = self._means.get(rows.bit_length())
        line_ns = self.fixed_ns + self.row_ns * rows
        if mean is None:
            return max(1, int(line_ns)) if rows <= self.rows_reach else 0
        reaches = rows <= self.rows_reach
        mean_ns = mean[2] + self.row_ns * (rows - mean[1]) if reaches else mean[2] * rows / mean[1]
        # Both are guesses where that size was not run lately, and what is taken for too slow is never run.
        return max(1, int(mean_ns if self._samples - mean[3] < _FRESH_BATCHES else min(mean_ns, line_ns)))

    def rows_enough(self, batch_ns: int) -> int:
        """Rows beyond which a larger batch only takes longer: a row in it costs hardly less. ROWS_ANY = not known.

        A batch of n rows costs fixed / n + row for each row, where what is done about a batch counts as fixed. Two
        sizes must be known, each from several runs, as the first ones may be cold. Small batches are never made only to
        learn more: where the batch itself costs the time, clients that wait for each other's answers would stay in the
        smaller groups that it makes of them. Nothing that runs for less than `batch_ns` is limited: there is no latency
        to be gained, and so no harm in a bad guess.
        """
        known = [mean for mean in self._means.values() if mean[0] >= _KNOWN_RUNS]
        stale = self._samples - _FRESH_BATCHES
        fresh = [mean for mean in known if mean[3] > stale]
        if not fresh:
            return ROWS_ANY
        small, large = min(known, key=_mean_rows), max(fresh, key=_mean_rows)
        if large[2] * _TRY_TIMES < batch_ns:
            return ROWS_ANY
        if small is large:
            return round(large[1]) * _TRY_TIMES if len(known) > 1 else ROWS_ANY
        row_ns = (large[2] - small[2]) / (large[1] - small[1])
        if row_ns <= 0.0:
            return ROWS_ANY
        fixed_ns = max(0.0, small[2] - row_ns * small[1]) + _BATCH_NS
        return max(1, ceil(max(fixed_ns / _ENOUGH_GAIN, batch_ns) / row_ns))


def _mean_rows(mean: list[float]) -> float:
    return mean[1]
