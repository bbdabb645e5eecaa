"""The shapes of OpenAI's files and batches. What is not known yet is left out, as OpenAI's schema has it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 86400
"""For which a file may be kept."""


class File(msgspec.Struct, kw_only=True):
    """What is told of a file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    expires_at: int | UnsetType = UNSET
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """A page of files."""

    data: list[File]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class DeletedFile(msgspec.Struct, kw_only=True):
    """It is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileQuery(msgspec.Struct, kw_only=True):
    """Which files to list."""

    after: str | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | UnsetType = UNSET


class UploadForm(msgspec.Struct, kw_only=True):
    """A form with a file of lines."""

    purpose: Literal["batch"]
    file: Annotated[str, Meta(extra_json_schema={"contentMediaType": "application/jsonl"})]
    anchor: Literal["created_at"] | UnsetType = field(name="expires_after[anchor]", default=UNSET)
    seconds: Annotated[int, Meta(ge=LEAST_SECONDS, le=MOST_SECONDS)] | UnsetType = field(
        name="expires_after[seconds]", default=UNSET
    )


class ExpiresAfter(msgspec.Struct, kw_only=True):
    """Seconds from the making of a file on after which it is deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=LEAST_SECONDS, le=MOST_SECONDS)]


class BatchRequest(msgspec.Struct, kw_only=True):
    """Which file's lines to answer, all of them asking one endpoint. completion_window: such as 24h, 90m or 7d."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(msgspec.Struct, kw_only=True):
    """Why a batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, kw_only=True):
    """Why a batch failed."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct, kw_only=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, kw_only=True):
    """Tokens that were in the prefix cache."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    """Tokens that are reasoning, where the endpoint tells."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, kw_only=True):
    """Tokens of all answers."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = field(default_factory=InputDetails)
    output_tokens: int = 0
    output_tokens_details: OutputDetails = field(default_factory=OutputDetails)
    total_tokens: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """A batch and how far it is; the times are Unix's."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    model: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ] = "validating"
    object: Literal["batch"] = "batch"
    errors: BatchErrors | UnsetType = UNSET
    output_file_id: str | UnsetType = UNSET
    error_file_id: str | UnsetType = UNSET
    in_progress_at: int | UnsetType = UNSET
    finalizing_at: int | UnsetType = UNSET
    completed_at: int | UnsetType = UNSET
    failed_at: int | UnsetType = UNSET
    expired_at: int | UnsetType = UNSET
    cancelling_at: int | UnsetType = UNSET
    cancelled_at: int | UnsetType = UNSET
    request_counts: RequestCounts = field(default_factory=RequestCounts)
    usage: BatchUsage = field(default_factory=BatchUsage)
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, kw_only=True):
    """A page of batches."""

    data: list[Batch]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class BatchQuery(msgspec.Struct, kw_only=True):
    """Which batches to list, the newest ones first."""

    after: str | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
