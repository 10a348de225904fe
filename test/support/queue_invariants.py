"""What must hold of a queue's tables and spool at any time, looked at from outside."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from base64 import urlsafe_b64encode

FINAL = ("completed", "perm_fail")


def violations(path, spool_dir):
    """Every broken invariant in words; empty when all is well."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    try:
        return [
            *_damage(db),
            *_messages(db),
            *_units(db),
            *_contents(db, spool_dir),
            *_recipients(db),
            *_journal(db),
            *_quotas(db),
            *_leases(db),
        ]
    finally:
        db.close()


def _damage(db):
    for (text,) in db.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"integrity: {text}"
    for row in db.execute("PRAGMA foreign_key_check"):
        yield f"foreign key: {tuple(row)}"


def _messages(db):
    # A unit is there while an attempt runs, and after one that was cut short.
    busy = {id_ for (id_,) in db.execute("SELECT message_id FROM unit")}
    for message in db.execute("SELECT id FROM message"):
        rows = db.execute("SELECT state, dsn_sent FROM recipient WHERE message_id = ?", (message["id"],)).fetchall()
        if not rows:
            yield f"QI1: message {message['id']:x} has no recipient"
        elif message["id"] not in busy and all(r["state"] in FINAL and r["dsn_sent"] for r in rows):
            yield f"QI1: message {message['id']:x} has nothing left to do"


def _units(db):
    wanted = {}
    for row in db.execute("SELECT created, recipient.* FROM recipient JOIN message ON id = message_id"):
        key = (row["message_id"], row["queue"])
        if row["state"] in FINAL:
            if row["dsn_sent"]:
                continue
            moments, end = [row["created"]], None
        else:
            end = row["created"] + row["expires_value"] if row["expires_kind"] == "ttl" else None
            moments = [row["retry_due"], row["notify_due"], end]
            if row["held_since"] is not None:
                moments, end = [], None
        wanted.setdefault(key, ([], []))
        wanted[key][0].extend(m for m in moments if m is not None)
        wanted[key][1].extend([end] if end is not None else [])
    seen = set()
    for unit in db.execute("SELECT unit.*, created FROM unit JOIN message ON id = message_id"):
        key = (unit["message_id"], unit["queue"])
        seen.add(key)
        if key not in wanted:
            if (unit["due"], unit["expires"]) != (unit["created"], None):
                yield f"QI2: unit {key} has nothing to do"
            continue
        due, ends = wanted[key]
        if unit["due"] != min(due, default=None):
            yield f"QI3: unit {key} is due at {unit['due']} instead of {min(due, default=None)}"
        if unit["expires"] != min(ends, default=None):
            yield f"unit {key} expires at {unit['expires']} instead of {min(ends, default=None)}"
    for key in wanted.keys() - seen:
        yield f"QI2: no unit for {key}"


def _contents(db, spool_dir):
    for row in db.execute("SELECT message.*, octets, path FROM message LEFT JOIN content ON message_id = id"):
        if row["octets"] is None:
            yield f"QI4: message {row['id']:x} has no content"
            continue
        octets = row["octets"]
        if row["path"] is not None:
            file = os.path.join(spool_dir, row["path"])
            if not os.path.exists(file):
                yield f"QI4: {file} is missing"
                continue
            with open(file, "rb") as spooled:
                octets += spooled.read()
        digest = urlsafe_b64encode(hashlib.sha256(octets).digest()).rstrip(b"=").decode()
        if len(octets) != row["size"] or digest != row["content_hash"]:
            yield f"QI4: the content of {row['id']:x} is not what it was"
    for (id_,) in db.execute("SELECT message_id FROM content WHERE message_id NOT IN (SELECT id FROM message)"):
        yield f"QI4: a content {id_:x} without message"


def _recipients(db):
    for row in db.execute("SELECT * FROM recipient WHERE state IN ('completed', 'perm_fail')"):
        if row["retry_due"] is not None:
            yield f"QI9: a closed recipient of {row['message_id']:x} has a next attempt"


def _quotas(db):
    used = {row["bucket"]: (row["messages"], row["octets"]) for row in db.execute("SELECT * FROM quota_usage")}
    charged = {
        row["bucket"]: (row["m"], row["o"])
        for row in db.execute("SELECT bucket, sum(messages) AS m, sum(octets) AS o FROM quota_ledger GROUP BY bucket")
    }
    for bucket in used.keys() | charged.keys():
        if used.get(bucket, (0, 0)) != charged.get(bucket, (0, 0)):
            yield f"QI5: bucket {bucket} holds {used.get(bucket)}, charged are {charged.get(bucket)}"
    for row in db.execute("SELECT * FROM quota_charge WHERE message_id NOT IN (SELECT id FROM message)"):
        yield f"QI5: a charge of {row['message_id']:x} without message"
    for row in db.execute(
        "SELECT quota_charge.message_id AS id, scope FROM quota_charge JOIN recipient"
        " ON recipient.message_id = quota_charge.message_id AND scope = 'recipient ' || idx"
        " WHERE state IN ('completed', 'perm_fail')"
    ):
        yield f"QI9: a closed recipient of {row['id']:x} is charged: {row['scope']}"


def _leases(db):
    for row in db.execute("SELECT * FROM unit WHERE (lease_owner IS NULL) <> (lease_until IS NULL)"):
        yield f"QI6: half a lease for {row['message_id']:x} {row['queue']}"


def _journal(db):
    """A mark that nobody's lease covers would be repeated without a word."""
    for row in db.execute(
        "SELECT attempt.*, lease_owner, unit.lease_gen AS held FROM attempt LEFT JOIN unit USING (message_id, queue)"
    ):
        if row["lease_owner"] is None or row["held"] != row["lease_gen"]:
            yield f"journal: {row['message_id']:x} in {row['queue']} is {row['phase']} under a lease that is over"
