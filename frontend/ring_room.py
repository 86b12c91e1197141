"""Why a request finds no place in the request ring, in words."""

from __future__ import annotations


def no_room(input_bytes: int, record_bytes_max: int, pending: int) -> str:
    """record_bytes_max: what an empty ring takes. pending: requests that it holds."""
    if input_bytes > record_bytes_max:
        return (
            f"an input of {input_bytes} bytes does not fit the request ring of {record_bytes_max} bytes; "
            "raise request_ring_bytes"
        )
    return (
        f"the request ring is full ({record_bytes_max} bytes, {pending} requests in flight); try again, or raise "
        "request_ring_bytes"
    )
