"""What each error word of Slack's Web API means for a delivery, from the tables of its methods.

https://docs.slack.dev/reference/methods/chat.postMessage#errors, …/chat.update#errors, …/chat.delete#errors (2026-11).
"Other errors can be returned in the case where the service is down or other unexpected factors affect processing", they
say: a word that is in no table may pass.
"""

from typing import Any

from aftercall.errors import SinkError

# It asks for patience. Usually with HTTP 429 and Retry-After, which never come here.
PATIENCE = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})
# Slack's own trouble, or what an operator mends: an invitation, a scope, a token, a rule of the workspace.
PASSING = frozenset({
    "access_denied", "accesslimited", "channel_not_found", "ekm_access_denied", "enterprise_is_restricted",
    "external_channel_migrating", "fatal_error", "internal_error", "invalid_auth", "messages_tab_disabled",
    "missing_scope", "no_permission", "not_authed", "not_in_channel", "org_login_required", "request_timeout",
    "restricted_action", "restricted_action_read_only_channel", "restricted_action_thread_only_channel",
    "service_unavailable", "team_access_not_granted", "team_added_to_org", "team_not_found", "token_expired",
    "two_factor_setup_required", "update_failed",
})  # fmt: skip
# There is no such bot or channel any more.
GONE = frozenset({"account_inactive", "is_archived", "token_revoked"})
# It would never take this message.
REFUSED = frozenset({
    "as_user_not_supported", "cannot_reply_to_message", "cant_broadcast_message", "cant_delete_message",
    "cant_update_message", "compliance_exports_prevent_deletion", "deprecated_endpoint",
    "duplicate_channel_not_found", "edit_window_closed", "invalid_arg_name", "invalid_arguments",
    "invalid_array_arg", "invalid_blocks", "invalid_blocks_format", "invalid_charset", "invalid_form_data",
    "invalid_metadata_format", "invalid_post_type", "message_not_found", "method_deprecated",
    "missing_post_type", "msg_blocks_too_long", "msg_too_long", "no_text", "not_allowed_token_type",
    "restricted_action_non_threadable_channel", "restricted_action_thread_locked", "too_many_attachments",
})  # fmt: skip
# A message that was deleted in Slack, or that the workspace's rules let nobody edit any more. An inactive one is in a
# channel that is archived or gone, which the new message is told.
UNCHANGEABLE = frozenset({"cant_update_message", "edit_window_closed", "is_inactive", "message_not_found"})


def refusal(word: Any) -> SinkError:
    """The error to raise for `"ok": false`. Only words of Slack's are repeated, for anyone may have answered."""
    known = isinstance(word, str) and word in PATIENCE | PASSING | GONE | REFUSED
    text = f"Slack refused: {word}" if known else "Slack refused with a word that its documentation does not have"
    if known and word in GONE:
        return SinkError(text, permanent=True, gone=True)
    patience = 1.0 if known and word in PATIENCE else None  # about a message a second for a channel
    return SinkError(text, permanent=known and word in REFUSED, retry_after=patience)
