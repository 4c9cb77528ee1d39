"""What Prometheus reads about the operator itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PLAN_SECONDS = Histogram(
    "plimsoll_plan_duration_seconds",
    "Time of one plan over the whole cluster",
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PLANS = Counter("plimsoll_plans_total", "Answers of the planner, one per resource and plan", ["result"])
ROUNDS = Counter("plimsoll_rounds_total", "Rounds of the planner actor", ["result"])
WRITES_WAITING = Gauge(
    "plimsoll_writes_waiting",
    "Resources with something to write that waits: for what may come at once, or after a write that failed",
)
API_WRITES = Counter("plimsoll_api_writes_total", "Write requests to the API server", ["kind", "verb"])
LEADING = Gauge("plimsoll_leading", "1 while this copy of the operator holds the Lease and writes")
TAKEOVERS = Counter("plimsoll_takeovers_total", "Times this copy took the Lease over from another one")
EVENTS_DROPPED = Counter(
    "plimsoll_events_dropped_total", "Events that were not posted because too many waited"
)
PREDICTION_ERROR = Gauge(
    "plimsoll_prediction_error_permille",
    "Predicted less measured bytes of the worst rank, in thousandths of the measured bytes",
    ["namespace", "name", "stage"],
)
FEED_SYNCED = Gauge("plimsoll_feed_synced", "1 when the feed has been listed", ["feed"])
FEED_RELISTS = Counter("plimsoll_feed_relists_total", "Lists of a feed, the first one included", ["feed"])
