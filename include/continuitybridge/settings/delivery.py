"""How messages are delivered, and how long they are kept: tokens, retries, batches, streams, retention."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Delivery(BaseModel):
    """From claim to settling, and after it."""

    token_lease_s: float = Field(
        default=15.0,
        ge=0.2,
        description="How long the right to obtain a connection's token holds without renewal: so soon another "
        "process goes on when one died over it.",
    )
    token_request_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest time for an answer of an authorization server or log-in page."
    )
    token_wait_s: float = Field(
        default=45.0, gt=0, description="Longest wait for a token that another process is obtaining."
    )
    lease_s: float = Field(default=60.0, gt=0, description="How long a claim holds without renewal.")
    max_attempts: int = Field(default=8, ge=1, description="Deliveries tried before a dead letter.")
    retry_base_s: float = Field(default=2.0, gt=0, description="First wait before a retry; doubles, with jitter.")
    retry_max_s: float = Field(default=900.0, gt=0, description="Longest wait between two tries.")
    destination_max_concurrency: int = Field(
        default=64, ge=1, description="Most calls to one destination at once, in each process that delivers."
    )
    circuit_failures: int = Field(
        default=10,
        ge=0,
        description="Passing failures in a row after which a destination is left alone for a while. 0: never.",
    )
    circuit_wait_s: float = Field(
        default=5.0,
        gt=0,
        description="How long a destination that failed is left alone; doubles when the next call fails too.",
    )
    circuit_max_wait_s: float = Field(
        default=300.0, gt=0, description="Longest time that a destination that failed is left alone."
    )
    sweep_interval_s: float = Field(default=5.0, gt=0, description="How often the orphan sweep looks.")
    batch_max_messages: int = Field(default=500, ge=1, description="Most messages of one batch run.")
    batch_max_active: int = Field(
        default=2,
        ge=1,
        description="Most batch runs of one flow that the dispatcher has under way; messages that come meanwhile "
        "gather for the next.",
    )
    task_parallelism: int = Field(
        default=8,
        ge=1,
        description="Most Airflow tasks at once on this machine (LocalExecutor), beside the stream workers; also "
        "the slots of Airflow's default pool.",
    )
    stream_workers: int = Field(
        default=2,
        ge=0,
        description="Stream workers that run as Airflow tasks. With one, streams stand still for some seconds "
        "when it is killed; 0: none, for those who run `bridge stream` themselves.",
    )
    stream_max_messages: int = Field(
        default=256, ge=2, description="Most messages that one stream worker holds; one organization: half of it."
    )
    stream_max_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1, description="Most bytes of messages that one stream worker holds."
    )
    flood_rest: float = Field(
        default=2.0,
        ge=0,
        le=20,
        description="Whoever floods, and is felt by organizations that have little, rests after each commit and "
        "each claim for up to so many times as long as that took (20 ms at most): processors and disk are the "
        "others' meanwhile. Where there are processors enough, less will do; 0: no rests, shares only.",
    )
    stream_lanes: int = Field(
        default=24,
        ge=1,
        description="Most node processes of one stream worker, each for a flow's version that has messages. Where "
        "more have some, they take turns.",
    )
    stream_drain_s: float = Field(
        default=10.0,
        ge=0,
        description="How long a stopping stream worker finishes what is under way; the rest is given back.",
    )
    stream_generation_s: float = Field(
        default=1800.0,
        ge=20.0,
        description="How long a generation of stream workers works before the next one takes over; they overlap "
        "by 20 s.",
    )
    outcome_interval_s: float = Field(
        default=60.0,
        ge=1.0,
        description="How often a flow's outcomes are told to Airflow, as one asset event with their counts.",
    )
    idempotency_window_days: int = Field(default=7, ge=1, description="How long an idempotency key is remembered.")
    retention_short_days: int = Field(
        default=7, ge=1, description="How long settled messages of retention class `short` are kept."
    )
    retention_standard_days: int = Field(
        default=90, ge=1, description="How long settled messages of class `standard`, and failures, are kept."
    )
    retention_long_days: int = Field(
        default=3650, ge=1, description="How long settled messages of retention class `long` are kept."
    )
