// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The ring of one sender and one receiver (channel_layout.h has the drawing).
//
// 1. The word of the record at the sender's place is NONE. The sender writes
//    the payload, makes the *next* record's word NONE, and then stores this
//    one's word: that store sends the message, and there is no other.
// 2. A record that has no room before the end of the ring is made at its start,
//    word and all, and sent by the word ONWARDS at the sender's place.
// 3. `head` is the receiver's place, stored when it is done with a record. The
//    sender stays 16 bytes behind it, so that (1) writes over no record and an
//    empty ring is not a full one.
//
// The sender's place is not in shared memory: the receiver looks at the record
// itself, which it needs anyway, so a message costs it no other cache line. Who
// takes over from a dead sender finds the place by walking from `head` to NONE;
// who takes over from a dead receiver begins at `head`, with the record that
// may have been peeked at.
//
// Both stores are plain ones, with a release. The barrier between such a store
// and the look whether the other end sleeps is that end's to have done, when it
// goes to sleep (port_fence.c): a stream of messages is then a stream of stores
// and of loads, of which many are under way at a time.
//
// Every word is read once and checked: a record is inside of the ring, or the
// channel is damaged, for good.

#include <assert.h>

#include "shmipc/channel_internal.h"

// How far ahead a receiver asks for lines: 24 against 28 ns for 64 bytes, 256
// bytes brought nothing.
#define AHEAD_BYTES 384u

// Sequentially consistent: after the bit of those that wait, and the barrier
// (port_wait.c).
static uint64_t load(const uint64_t *word) {
  return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

// From a place to another, onwards.
static uint64_t distance(const shmipc_view_t *view, uint64_t from,
                         uint64_t to) {
  return to >= from ? to - from : to + view->ring_bytes - from;
}

static bool is_place(const shmipc_view_t *view, uint64_t offset) {
  return offset < view->ring_bytes && offset % SHMIPC_SPSC_UNIT == 0;
}

int shmipc_spsc_record(const shmipc_view_t *view, uint64_t offset,
                       uint64_t *out_place, size_t *out_len,
                       uint64_t *out_next) {
  // Acquire: pairs with the last store in commit.
  uint64_t word = load(shmipc_record_word(view, offset));
  if (word == SHMIPC_RECORD_NONE) {
    return -EAGAIN;
  }
  if (word == SHMIPC_RECORD_ONWARDS) {
    offset = 0;
    word = load(shmipc_record_word(view, 0));
  }
  uint32_t len = (uint32_t)word - 1;
  uint64_t bytes = shmipc_record_bytes(len);
  if (word != SHMIPC_RECORD_OF(len) || len > view->message_bytes ||
      (view->is_fixed && len != view->message_bytes) ||
      bytes > view->ring_bytes - offset) {
    return -EPROTO;
  }
  *out_place = offset;
  *out_len = len;
  *out_next = offset + bytes == view->ring_bytes ? 0 : offset + bytes;
  return 0;
}

int shmipc_spsc_attach(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  uint64_t head = load(&view->channel->head);
  if (!is_place(view, head)) {
    return -EPROTO;
  }
  port->position = head;
  port->head_seen = head;
  if (port->role == SHMIPC_RECEIVER) {
    return 0;
  }
  // No sender is alive, so this ends. The receiver may go on meanwhile, but
  // changes no record.
  for (uint64_t i = 0; i <= view->ring_bytes / SHMIPC_SPSC_UNIT; i++) {
    uint64_t place;
    size_t len;
    int status =
        shmipc_spsc_record(view, port->position, &place, &len, &port->position);
    if (status < 0) {
      return status == -EAGAIN ? 0 : status;
    }
  }
  return -EPROTO;
}

// How far the sender may go, as it knows by now; at least `wanted` if that is
// so.
static int look_for_room(shmipc_port_t *port, uint64_t wanted) {
  const shmipc_view_t *view = &port->view;
  uint64_t used = distance(view, port->head_seen, port->position);
  if (view->ring_bytes - used >= wanted) {
    return 0;
  }
  // Acquire: the receiver is done with what is before it.
  uint64_t head = load(&view->channel->head);
  if (!is_place(view, head) || distance(view, port->head_seen, head) > used) {
    port->is_damaged = true;
    return -EPROTO;
  }
  used -= distance(view, port->head_seen, head);
  port->head_seen = head;
  return view->ring_bytes - used >= wanted ? 0 : -EAGAIN;
}

int shmipc_spsc_reserve(shmipc_port_t *port, size_t len) {
  const shmipc_view_t *view = &port->view;
  assert(!port->has_message && len <= view->message_bytes);
  uint64_t bytes = shmipc_record_bytes(len);
  uint64_t until_end = view->ring_bytes - port->position;
  bool wraps = bytes > until_end;
  int status =
      look_for_room(port, bytes + (wraps ? until_end : 0) + SHMIPC_SPSC_UNIT);
  if (__builtin_expect(status < 0 || port->is_damaged, 0)) {
    return port->is_damaged ? -EPROTO : status;
  }
  port->has_message = true;
  port->has_wrapped = wraps;
  port->place = port->position;
  port->payload = view->ring + (wraps ? 0 : port->position) + 16;
  port->len = len;
  return 0;
}

void shmipc_spsc_commit(shmipc_port_t *port, size_t len) {
  const shmipc_view_t *view = &port->view;
  uint64_t place = port->has_wrapped ? 0 : port->place;
  uint64_t next = place + shmipc_record_bytes(len);
  assert(next <= view->ring_bytes);
  if (next == view->ring_bytes) {
    next = 0;
  }
  // Relaxed: the last store releases all.
  __atomic_store_n(shmipc_record_word(view, next), SHMIPC_RECORD_NONE,
                   __ATOMIC_RELAXED);
  uint64_t word = SHMIPC_RECORD_OF(len);
  if (port->has_wrapped) {
    __atomic_store_n(shmipc_record_word(view, 0), word, __ATOMIC_RELAXED);
    word = SHMIPC_RECORD_ONWARDS;
  }
  // Release: pairs with the load in shmipc_spsc_record.
  __atomic_store_n(shmipc_record_word(view, port->place), word,
                   __ATOMIC_RELEASE);
  port->position = next;
  port->has_message = false;
  shmipc_port_notify(port, SHMIPC_RECEIVER - 1);
}

int shmipc_spsc_peek(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  uint64_t next;
  int status =
      shmipc_spsc_record(view, port->position, &port->place, &port->len, &next);
  if (__builtin_expect(status < 0, 0)) {
    return status;
  }
  port->has_message = true;
  port->head_seen = next;
  port->payload = view->ring + port->place + 16;
  // Where a stream has come to by then; what is behind the ring does no harm.
  __builtin_prefetch(view->ring + port->place + AHEAD_BYTES);
  return 0;
}

void shmipc_spsc_release(shmipc_port_t *port) {
  port->position = port->head_seen;
  port->has_message = false;
  // Release: pairs with the acquire in look_for_room.
  __atomic_store_n(&port->view.channel->head, port->position, __ATOMIC_RELEASE);
  shmipc_port_notify(port, SHMIPC_SENDER - 1);
}

bool shmipc_spsc_would_wait(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  if (port->role == SHMIPC_RECEIVER) {
    return __atomic_load_n(shmipc_record_word(view, port->position),
                           __ATOMIC_SEQ_CST) == SHMIPC_RECORD_NONE;
  }
  // For the longest message, wherever the place is.
  uint64_t bytes = shmipc_record_bytes(view->message_bytes);
  uint64_t until_end = view->ring_bytes - port->position;
  return look_for_room(port, bytes + (bytes > until_end ? until_end : 0) +
                                 SHMIPC_SPSC_UNIT) == -EAGAIN;
}
