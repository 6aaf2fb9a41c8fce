"""How does a plan become tokens: sessions, requests, and the graphs that are captured behind them?"""

from hjgc.runtime.backend import Backend, BackendRefused, HostFunction, LogitsProcessor, MemoryRef
from hjgc.runtime.errors import Cancelled, ContextFull, DeadlineExceeded, SessionClosed
from hjgc.runtime.request import Request
from hjgc.runtime.runner import State
from hjgc.runtime.session import Session

__all__ = [
    "Backend",
    "BackendRefused",
    "Cancelled",
    "ContextFull",
    "DeadlineExceeded",
    "HostFunction",
    "LogitsProcessor",
    "MemoryRef",
    "Request",
    "Session",
    "SessionClosed",
    "State",
]
