"""Every route of the API."""

from __future__ import annotations

from typing import Any

from sophserve.api.anthropic import answer_types as anthropic
from sophserve.api.anthropic.error_envelope import ANTHROPIC
from sophserve.api.anthropic.messages import CountRequest, MessagesRequest, count_tokens, messages
from sophserve.api.batches import answer_types as batch
from sophserve.api.batches.batches import cancel_batch, create_batch, get_batch, list_batches
from sophserve.api.batches.files import delete_file, get_content, get_file, list_files, upload_file
from sophserve.api.generation.answer_pump import whole
from sophserve.api.generation.request_bodies import ChatRequest, CompletionRequest
from sophserve.api.openai import answer_types as openai
from sophserve.api.openai.chat_completions import chat_answer, chat_completions
from sophserve.api.openai.completions import completion_answer, completions
from sophserve.api.openai.conversations import (
    ConversationBody,
    ItemsBody,
    MetadataBody,
    add_items,
    create_conversation,
    delete_conversation,
    delete_item,
    get_conversation,
    get_item,
    list_items,
    update_conversation,
)
from sophserve.api.openai.embeddings import EmbeddingRequest, embedding_answer, embeddings
from sophserve.api.openai.error_envelope import RESPONSES
from sophserve.api.openai.rerank import RerankRequest, ScoreRequest, rerank, score
from sophserve.api.openai.response_input import InputTokensRequest, ResponsesRequest
from sophserve.api.openai.responses import count_input_tokens, create_response, response_answer
from sophserve.api.openai.stored_responses import cancel_response, delete_response, get_response, list_input_items
from sophserve.api.operations import answer_types as operations
from sophserve.api.operations.health import health, live, ping, version
from sophserve.api.operations.live_requests import cancel_request, list_requests
from sophserve.api.operations.metrics import metrics, reset_prefix_cache
from sophserve.api.operations.models import get_model, list_models
from sophserve.api.operations.openapi import openapi as describe_api
from sophserve.api.operations.profile import start_profile, stop_profile
from sophserve.api.operations.server_info import server_info
from sophserve.api.operations.tokenize import (
    ConversationRequest,
    DetokenizeRequest,
    TokenizeRequest,
    apply_template,
    detokenize,
    tokenize,
    tokenizer_info,
)
from sophserve.api.route import Route, RouteTable
from sophserve.profile_format import ProfileOptions

TABLE = RouteTable(
    [
        Route("GET", "/health", health, operations.Status, open=True, quiet=True),
        Route("GET", "/ready", health, operations.Status, open=True, quiet=True),
        Route("GET", "/live", live, operations.Status, open=True, quiet=True),
        Route("GET", "/ping", ping, open=True, quiet=True),
        Route("POST", "/ping", ping, open=True, quiet=True),
        Route("GET", "/version", version, operations.Version),
        Route("GET", "/openapi.json", describe_api, dict[str, Any]),
        Route("GET", "/server_info", server_info, operations.ServerInfo),
        Route("GET", "/metrics", metrics, str, quiet=True),
        Route("POST", "/reset_prefix_cache", reset_prefix_cache, operations.Status),
        Route("POST", "/start_profile", start_profile, operations.ProfileFolders, ProfileOptions, optional=True),
        Route("POST", "/stop_profile", stop_profile, operations.ProfileFolders),
        Route("GET", "/requests", list_requests, operations.LiveRequests),
        Route("POST", "/requests/{id}/cancel", cancel_request, operations.Cancelled),
        Route("DELETE", "/requests/{id}", cancel_request, operations.Cancelled),
        Route("POST", "/tokenize", tokenize, operations.Tokens, TokenizeRequest),
        Route("POST", "/detokenize", detokenize, operations.Text, DetokenizeRequest),
        Route("POST", "/apply-template", apply_template, operations.Prompt, ConversationRequest),
        Route("GET", "/tokenizer_info", tokenizer_info, dict[str, Any]),
        Route("GET", "/v1/models", list_models, openai.ModelList, anthropic=anthropic.AnthropicModelList),
        Route("GET", "/v1/models/{name:.+}", get_model, openai.Model, anthropic=anthropic.AnthropicModel),
        Route(
            "POST",
            "/v1/chat/completions",
            chat_completions,
            openai.ChatCompletion,
            ChatRequest,
            streams=True,
            line=whole(chat_answer),
        ),
        Route(
            "POST",
            "/v1/completions",
            completions,
            openai.Completion,
            CompletionRequest,
            streams=True,
            line=whole(completion_answer),
        ),
        Route("POST", "/v1/embeddings", embeddings, openai.EmbeddingList, EmbeddingRequest, line=embedding_answer),
        Route("POST", "/v1/rerank", rerank, openai.Ranking, RerankRequest),
        Route("POST", "/v2/rerank", rerank, openai.Ranking, RerankRequest),
        Route("POST", "/rerank", rerank, openai.Ranking, RerankRequest),
        Route("POST", "/v1/score", score, openai.ScoreList, ScoreRequest),
        Route("POST", "/score", score, openai.ScoreList, ScoreRequest),
        Route(
            "POST",
            "/v1/responses",
            create_response,
            openai.Response,
            ResponsesRequest,
            streams=True,
            envelope=RESPONSES,
            line=whole(response_answer),
        ),
        Route("POST", "/v1/responses/input_tokens", count_input_tokens, openai.InputTokens, InputTokensRequest),
        Route("GET", "/v1/responses/{id}", get_response, openai.Response, streams=True, envelope=RESPONSES),
        Route("DELETE", "/v1/responses/{id}", delete_response, openai.Deleted),
        Route("POST", "/v1/responses/{id}/cancel", cancel_response, openai.Response),
        Route("GET", "/v1/responses/{id}/input_items", list_input_items, openai.ItemList),
        Route("POST", "/v1/conversations", create_conversation, openai.Conversation, ConversationBody, optional=True),
        Route("GET", "/v1/conversations/{id}", get_conversation, openai.Conversation),
        Route("POST", "/v1/conversations/{id}", update_conversation, openai.Conversation, MetadataBody),
        Route("DELETE", "/v1/conversations/{id}", delete_conversation, openai.DeletedConversation),
        Route("GET", "/v1/conversations/{id}/items", list_items, openai.ItemList),
        Route("POST", "/v1/conversations/{id}/items", add_items, openai.ItemList, ItemsBody),
        Route("GET", "/v1/conversations/{id}/items/{item}", get_item, dict[str, Any]),
        Route("DELETE", "/v1/conversations/{id}/items/{item}", delete_item, openai.Conversation),
        Route("POST", "/v1/files", upload_file, batch.File, batch.UploadForm, form=True),
        Route("GET", "/v1/files", list_files, batch.FileList, query=batch.FileQuery),
        Route("GET", "/v1/files/{id}", get_file, batch.File),
        Route("DELETE", "/v1/files/{id}", delete_file, batch.DeletedFile),
        Route("GET", "/v1/files/{id}/content", get_content, bytes),
        Route("POST", "/v1/batches", create_batch, batch.Batch, batch.BatchRequest),
        Route("GET", "/v1/batches", list_batches, batch.BatchList, query=batch.BatchQuery),
        Route("GET", "/v1/batches/{id}", get_batch, batch.Batch),
        Route("POST", "/v1/batches/{id}/cancel", cancel_batch, batch.Batch),
        Route(
            "POST",
            "/v1/messages",
            messages,
            anthropic.AnthropicMessage,
            MessagesRequest,
            streams=True,
            envelope=ANTHROPIC,
        ),
        Route(
            "POST",
            "/v1/messages/count_tokens",
            count_tokens,
            anthropic.TokenCount,
            CountRequest,
            envelope=ANTHROPIC,
        ),
    ]
)
