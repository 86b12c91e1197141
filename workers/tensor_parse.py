"""TensorProto -> array by TensorFlow's own parser, the one that TF Serving decodes requests and warm-up records with.

`tf.make_ndarray` is another one: it refuses missing values that the C++ parser fills up, and reads others as they are
not meant. Frontends, which have no TensorFlow, decode by the same rules in `frontend/tensor_proto.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ringserve.broker.messages import Code
from ringserve.shm.dtype import DTYPES
from ringserve.workers import session
from ringserve.workers.failures import RunFailure


class TensorParser:
    """Parses tensors in a little session of its own, made by the first one. Close it when all are parsed."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._session: Any = None
        self._calls: dict[int, session.Call] = {}

    def parse(self, proto: Any, alias: str) -> np.ndarray[Any, Any]:
        """The array that `proto` means. alias: named in the failure's text. Raises RunFailure."""
        call = self._call(proto.dtype) if proto.dtype in DTYPES else None
        if call is not None:
            try:
                (array,) = call(np.array(proto.SerializeToString(), object))
            except tf.errors.OpError:
                pass
            else:
                is_array = isinstance(array, np.ndarray)
                return array if is_array else np.array(array, object if type(array) is bytes else None)
        raise RunFailure(Code.INVALID_ARGUMENT, f"tensor parsing error: {alias}")

    def _call(self, dtype: int) -> session.Call:
        call = self._calls.get(dtype)
        if call is None:
            if self._session is None:
                self._graph = tf.Graph()
                self._session = session.open_session(self._graph, session.ORDINARY, 1)
            with self._graph.as_default(), tf.device("cpu:0"):
                serialized = tf.compat.v1.placeholder(tf.string, [])
                parsed = tf.io.parse_tensor(serialized, tf.as_dtype(dtype))
            call = self._calls[dtype] = session.make_call(self._session, [serialized.name], [parsed.name])
        return call

    def close(self) -> None:
        """Free the session."""
        self._calls.clear()
        if self._session is not None:
            self._session.close()
            self._session = None
