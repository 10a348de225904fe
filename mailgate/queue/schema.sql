-- The queue, version 1. Times are milliseconds since the epoch, except lease_until: milliseconds
-- of the host's boot-time clock, which no change of the wall clock moves. States are words.
-- One message owns its content; everything that belongs to a message goes with its row.

CREATE TABLE message (
    id INTEGER PRIMARY KEY,             -- the queue id; ascends with time
    created INTEGER NOT NULL,
    content_kind TEXT NOT NULL,         -- inline, spool
    content_hash TEXT NOT NULL,         -- SHA-256 of the stored octets, base64url without padding
    size INTEGER NOT NULL,              -- stored octets
    return_path TEXT NOT NULL,          -- empty: the null sender
    source TEXT NOT NULL,
    trace TEXT,
    env_id TEXT,
    ret TEXT,                           -- full, hdrs
    flags TEXT,                         -- words: smtputf8 requiretls 7bit 8bitmime binarymime
    priority INTEGER NOT NULL,
    hold INTEGER NOT NULL,              -- milliseconds after created
    deliver_by TEXT,                    -- as in BY=: 3600;R
    from_ip TEXT NOT NULL,
    via_port INTEGER NOT NULL
);

CREATE TABLE content (
    message_id INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
    octets BLOB NOT NULL,               -- inline: all stored octets; spool: those that stand before the file's
    path TEXT                           -- spool: the file, relative to the spool directory
);

CREATE TABLE recipient (
    message_id INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    idx INTEGER NOT NULL,
    address TEXT NOT NULL,
    orcpt TEXT,
    notify_flags TEXT,                  -- NULL: FAILURE,DELAY
    queue TEXT NOT NULL,
    schedule TEXT NOT NULL,
    state TEXT NOT NULL,                -- scheduled, temp_fail, completed, perm_fail
    status_json TEXT,
    retry_due INTEGER,
    retry_num INTEGER NOT NULL,
    notify_due INTEGER,
    notify_num INTEGER NOT NULL,
    expires_kind TEXT NOT NULL,         -- ttl (milliseconds after created), attempts
    expires_value INTEGER NOT NULL,
    dsn_sent INTEGER NOT NULL,
    held_since INTEGER,                 -- held by an operator or a filter: neither attempted nor expired
    PRIMARY KEY (message_id, idx)
) WITHOUT ROWID;

-- One per message and virtual queue with an open recipient, or with one that waits for its notification.
CREATE TABLE unit (
    message_id INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    queue TEXT NOT NULL,
    due INTEGER,                        -- NULL: never, all are held
    expires INTEGER,                    -- the earliest end of a time to live; NULL: none
    lease_owner TEXT,                   -- NULL: free
    lease_gen INTEGER NOT NULL,         -- only grows; a result under an older one is refused
    lease_until INTEGER,
    PRIMARY KEY (message_id, queue)
) WITHOUT ROWID;

CREATE INDEX unit_due ON unit (queue, due) WHERE lease_owner IS NULL;
CREATE INDEX unit_expires ON unit (expires) WHERE lease_owner IS NULL AND expires IS NOT NULL;
CREATE INDEX unit_lease ON unit (lease_until) WHERE lease_owner IS NOT NULL;

CREATE TABLE flag (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- For operators: sqlite3 -readonly queue.sqlite 'SELECT * FROM queue_view'
CREATE VIEW queue_view AS
SELECT
    printf('%016x', message.id) AS queue_id,
    CAST(strftime('%s', 'now') AS INTEGER) - message.created / 1000 AS age_seconds,
    message.return_path AS sender,
    recipient.address AS recipient,
    recipient.queue AS queue,
    CASE WHEN recipient.held_since IS NULL THEN recipient.state ELSE 'held' END AS state,
    datetime(recipient.retry_due / 1000, 'unixepoch') AS next_attempt,
    recipient.retry_num AS retries,
    CASE WHEN json_extract(recipient.status_json, '$.kind') IS NULL THEN NULL
        ELSE json_extract(recipient.status_json, '$.kind') || ' ' || json_extract(recipient.status_json, '$.entity') || ': '
            || coalesce(json_extract(recipient.status_json, '$.code') || ' ' || json_extract(recipient.status_json, '$.text'),
                json_extract(recipient.status_json, '$.detail'), '')
        END AS last_error,
    unit.lease_owner AS holder
FROM message
JOIN recipient ON recipient.message_id = message.id
LEFT JOIN unit ON unit.message_id = message.id AND unit.queue = recipient.queue;
