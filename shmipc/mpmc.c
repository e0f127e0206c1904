// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The ring of many senders and receivers: cells that say themselves what they
// are, and whose (channel_layout.h).
//
//   FREE(lap) -> WRITING(lap, port) -> READY(lap) -> READING(lap, port)
//      ^              |                                 |       ^
//      |              v                                 v       |
//      |          ABORTED(lap)                      RETURNED(lap)
//      '----- lap + 1 ----'----- lap + 1 ---------------'
//
// Position p is the cell p mod n at lap p / n. There is no index that everybody
// changes: each port walks on from where it was.
//
// 1. A sender claims position p only after it saw that p - 1 was claimed, so
//    positions are claimed in order and none is left out. Receivers take them
//    in order in the same way.
// 2. A cell changes only by a compare-and-swap from what was seen, or by the
//    port that it names. So a port that dies leaves cells that name it, at most
//    one; and it is the one of its note, which it wrote before the claim.
// 3. Whoever finds a port dead makes WRITING an ABORTED, which receivers pass
//    over, and READING a RETURNED, which they look for when `returned` says so.
//    Each step may be repeated, and the port's entry is freed last: a recoverer
//    that dies is followed by another.
// 4. `returned` is a count, and 0 when there is no RETURNED cell. It is added
// to
//    after a cell is RETURNED, and again whenever a receiver is recovered: who
//    made it so may have died before. It becomes 0, by a compare-and-swap from
//    what it was before, only after a look at all cells that found none. So who
//    is stopped while it looks hides nothing from others.
// 5. A port that has not been used while others went 2^31 laps on sees words
//    that make no sense; it begins again as a new one does.
//
// What a port does to a cell that names it is a plain store, with a release.
// Claims, and all that others do to it, are changes by compare-and-swap. Those
// that wait set a bit and then look (port_wait.c), those that notify do it the
// other way round; port_fence.c has the barriers.
//
// A word has 32 bits of the lap and 17 of a port's generation: one that is held
// up in the middle of a claim for exactly 2^32 laps of a cell, or of a recovery
// for 2^17 openings of the port with the same cell, may change it wrongly.

#include <assert.h>

#include "shmipc/channel_internal.h"

// A walk that is longer meets nothing but what others change all the time.
static uint64_t most_steps(const shmipc_view_t *view) {
  return 2 * (view->mask + 1) + 64;
}

// Hints are stored every so many positions.
#define HINT_EVERY 16u

// Pairs with the release of whoever changed the cell.
static uint64_t load(const shmipc_cell_t *cell) {
  return __atomic_load_n(&cell->word, __ATOMIC_SEQ_CST);
}

static bool change(shmipc_cell_t *cell, uint64_t from, uint64_t to) {
  // Release: the note is there before. Acquire: as load.
  return __atomic_compare_exchange_n(&cell->word, &from, to, false,
                                     __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

// By whom the cell names: nobody else changes it.
static void set(shmipc_cell_t *cell, uint64_t word) {
  // Release: pairs with load.
  __atomic_store_n(&cell->word, word, __ATOMIC_RELEASE);
}

static int32_t laps_ahead(const shmipc_view_t *view, uint64_t word,
                          uint64_t position) {
  return (int32_t)(SHMIPC_CELL_LAP(word) - shmipc_lap_of(view, position));
}

// Whether the position has been claimed by a sender, or taken by a receiver.
static bool is_passed(const shmipc_view_t *view, uint32_t role,
                      uint64_t position) {
  uint64_t word = load(shmipc_cell_of(view, position));
  int32_t ahead = laps_ahead(view, word, position);
  uint32_t state = SHMIPC_CELL_STATE(word);
  if (ahead != 0) {
    return ahead > 0;
  }
  return role == SHMIPC_SENDER
             ? state != SHMIPC_CELL_FREE
             : state == SHMIPC_CELL_READING || state == SHMIPC_CELL_RETURNED;
}

static uint64_t *hint_of(const shmipc_port_t *port) {
  shmipc_channel_t *channel = port->view.channel;
  return port->role == SHMIPC_SENDER ? &channel->sender_hint : &channel->head;
}

// Goes on from the hint if it is further and true.
static uint64_t follow_hint(const shmipc_port_t *port, uint64_t position) {
  uint64_t hint = __atomic_load_n(hint_of(port), __ATOMIC_RELAXED);
  return (int64_t)(hint - position) > 0 &&
                 is_passed(&port->view, port->role, hint - 1)
             ? hint
             : position;
}

// Whether a word that is laps behind the position means that the ring is full,
// or empty with a message a lap before at a receiver's.
static bool is_end(uint32_t role, int32_t ahead, uint32_t state) {
  return ahead == -1 &&
         (role == SHMIPC_SENDER
              ? state != SHMIPC_CELL_FREE
              : state == SHMIPC_CELL_READING || state == SHMIPC_CELL_RETURNED);
}

int shmipc_mpmc_attach(shmipc_port_t *port) {
  // The first cell has been passed at the lap before its own, so the end is not
  // before that. (In a new channel that is lap -1, which all are ahead of.)
  uint32_t lap = SHMIPC_CELL_LAP(load(shmipc_cell_of(&port->view, 0)));
  uint64_t position = (uint64_t)lap << port->view.lap_shift;
  port->position = follow_hint(port, position - (port->view.mask + 1));
  return 0;
}

// The position after one that is passed. A cell that is several laps ahead has
// been passed at the lap before its own; of what lies behind we know nothing.
static uint64_t step(const shmipc_port_t *port, uint64_t position,
                     int32_t ahead, uint64_t num_steps) {
  if (ahead > 1) {
    position += (uint64_t)(uint32_t)(ahead - 1) << port->view.lap_shift;
  }
  position++;
  return num_steps % HINT_EVERY == HINT_EVERY - 1 ? follow_hint(port, position)
                                                  : position;
}

// At a word that is laps behind: moves on as one that others have left 2^31
// laps behind has to, once in a call, or returns what the word means.
static int leap(shmipc_port_t *port, uint64_t *position, int32_t ahead,
                uint32_t state, bool *has_leapt) {
  int status = is_end(port->role, ahead, state) ? -EAGAIN : -EPROTO;
  if (*has_leapt) {
    return status;
  }
  *has_leapt = true;
  uint64_t before = *position;
  if (status == -EAGAIN) {
    *position = follow_hint(port, before);
    return *position != before ? 0 : status;
  }
  (void)shmipc_mpmc_attach(port);
  *position = port->position;
  return 0;
}

// Notes the cell and makes it ours.
static bool claim(shmipc_port_t *port, uint64_t position, shmipc_cell_t *cell,
                  uint64_t seen, uint32_t state) {
  // Relaxed: the change releases it.
  __atomic_store_n(&port->entry->note, position + 1, __ATOMIC_RELAXED);
  if (!change(cell, seen,
              SHMIPC_CELL_WORD(SHMIPC_CELL_LAP(seen), port->id, state))) {
    return false;
  }
  port->has_message = true;
  port->place = position;
  port->payload = cell->payload;
  return true;
}

// After a claim that went forward.
static void go_on(shmipc_port_t *port, uint64_t position) {
  port->position = position + 1;
  if (port->position % HINT_EVERY == 0) {
    __atomic_store_n(hint_of(port), port->position, __ATOMIC_RELAXED);
  }
}

int shmipc_mpmc_reserve(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  assert(!port->has_message);
  uint64_t position = port->position;
  int status = -EAGAIN;
  bool has_leapt = false;
  for (uint64_t i = 0; i < most_steps(view); i++) {
    shmipc_cell_t *cell = shmipc_cell_of(view, position);
    uint64_t word = load(cell);
    int32_t ahead = laps_ahead(view, word, position);
    bool is_free = SHMIPC_CELL_STATE(word) == SHMIPC_CELL_FREE;
    if (ahead == 0 && is_free) {
      if (claim(port, position, cell, word, SHMIPC_CELL_WRITING)) {
        go_on(port, position);
        return 0;
      }
      continue;
    }
    if (ahead < 0) {
      // Full; or nonsense, as the position a lap before must have been claimed.
      status =
          leap(port, &position, ahead, SHMIPC_CELL_STATE(word), &has_leapt);
      if (status < 0) {
        break;
      }
      status = -EAGAIN;
      continue;
    }
    position = step(port, position, ahead, i);
  }
  port->position = position;
  return status;
}

static void leave(shmipc_port_t *port, uint32_t lap, uint32_t state) {
  port->has_message = false;
  set(shmipc_cell_of(&port->view, port->place),
      SHMIPC_CELL_WORD(lap, 0, state));
}

void shmipc_mpmc_commit(shmipc_port_t *port, size_t len) {
  // Relaxed: the change of the word releases it.
  __atomic_store_n(&shmipc_cell_of(&port->view, port->place)->len,
                   (uint32_t)len, __ATOMIC_RELAXED);
  leave(port, shmipc_lap_of(&port->view, port->place), SHMIPC_CELL_READY);
  shmipc_port_notify(port, SHMIPC_RECEIVER - 1);
}

void shmipc_mpmc_abort(shmipc_port_t *port) {
  leave(port, shmipc_lap_of(&port->view, port->place), SHMIPC_CELL_ABORTED);
  shmipc_port_notify(port, SHMIPC_RECEIVER - 1);
}

// Reads the length of a cell that is ours. One that cannot be is dropped.
static int accept(shmipc_port_t *port, const shmipc_cell_t *cell) {
  uint32_t len = __atomic_load_n(&cell->len, __ATOMIC_RELAXED);
  port->len = len;
  if (len > port->view.message_bytes ||
      (port->view.is_fixed && len != port->view.message_bytes)) {
    shmipc_mpmc_release(port);
    return -EPROTO;
  }
  return 0;
}

// After a cell has become RETURNED, or may have.
static void add_to_returned(const shmipc_view_t *view) {
  uint32_t *returned = &view->channel->returned;
  if (__atomic_add_fetch(returned, 1, __ATOMIC_SEQ_CST) == 0) {
    (void)__atomic_add_fetch(returned, 1, __ATOMIC_SEQ_CST);
  }
}

// Looks for a message that a dead receiver had. `seen` is the count.
static int peek_at_returned(shmipc_port_t *port, uint32_t seen) {
  const shmipc_view_t *view = &port->view;
  for (uint64_t i = 0; i <= view->mask; i++) {
    shmipc_cell_t *cell = shmipc_cell_of(view, i);
    uint64_t word = load(cell);
    if (SHMIPC_CELL_STATE(word) != SHMIPC_CELL_RETURNED) {
      continue;
    }
    uint64_t position =
        ((uint64_t)SHMIPC_CELL_LAP(word) << view->lap_shift) | i;
    if (claim(port, position, cell, word, SHMIPC_CELL_READING)) {
      // There may be more.
      return accept(port, cell);
    }
  }
  (void)__atomic_compare_exchange_n(&view->channel->returned, &seen, 0, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  return -EAGAIN;
}

int shmipc_mpmc_peek(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  assert(!port->has_message);
  // Sequentially consistent, as is the addition: before the cells.
  uint32_t returned =
      __atomic_load_n(&view->channel->returned, __ATOMIC_SEQ_CST);
  if (__builtin_expect(returned != 0, 0)) {
    int status = peek_at_returned(port, returned);
    if (status != -EAGAIN) {
      return status;
    }
  }
  uint64_t position = port->position;
  int status = -EAGAIN;
  bool has_leapt = false;
  port->is_pending = false;
  for (uint64_t i = 0; i < most_steps(view); i++) {
    shmipc_cell_t *cell = shmipc_cell_of(view, position);
    uint64_t word = load(cell);
    int32_t ahead = laps_ahead(view, word, position);
    uint32_t state = SHMIPC_CELL_STATE(word);
    if (ahead == 0 && state == SHMIPC_CELL_READY) {
      if (claim(port, position, cell, word, SHMIPC_CELL_READING)) {
        go_on(port, position);
        return accept(port, cell);
      }
      continue;
    }
    if (ahead == 0 && state == SHMIPC_CELL_ABORTED) {
      if (change(cell, word,
                 SHMIPC_CELL_WORD(SHMIPC_CELL_LAP(word) + 1, 0,
                                  SHMIPC_CELL_FREE))) {
        shmipc_port_notify(port, SHMIPC_SENDER - 1);
      }
      continue;
    }
    if (ahead == 0 && state <= SHMIPC_CELL_WRITING) {
      port->is_pending = state == SHMIPC_CELL_WRITING;
      break;
    }
    if (state > SHMIPC_CELL_RETURNED) {
      status = -EPROTO;
      break;
    }
    if (ahead < 0) {
      status = leap(port, &position, ahead, state, &has_leapt);
      if (status < 0) {
        break;
      }
      status = -EAGAIN;
      continue;
    }
    position = step(port, position, ahead, i);
  }
  port->position = position;
  return status;
}

void shmipc_mpmc_release(shmipc_port_t *port) {
  leave(port, shmipc_lap_of(&port->view, port->place) + 1, SHMIPC_CELL_FREE);
  shmipc_port_notify(port, SHMIPC_SENDER - 1);
}

void shmipc_mpmc_return(shmipc_port_t *port) {
  leave(port, shmipc_lap_of(&port->view, port->place), SHMIPC_CELL_RETURNED);
  add_to_returned(&port->view);
  shmipc_port_notify(port, SHMIPC_RECEIVER - 1);
}

void shmipc_mpmc_recover(const shmipc_view_t *view, uint32_t index,
                         uint64_t entry_word) {
  const shmipc_port_entry_t *entry = &view->channel->ports[index];
  uint64_t note = __atomic_load_n(&entry->note, __ATOMIC_RELAXED);
  shmipc_cell_t *cell = shmipc_cell_of(view, note - 1);
  uint64_t word = load(cell);
  uint64_t id = SHMIPC_CELL_ID(index, SHMIPC_PORT_GENERATION(entry_word));
  uint32_t lap = SHMIPC_CELL_LAP(word);
  if (word == SHMIPC_CELL_WORD(lap, id, SHMIPC_CELL_WRITING)) {
    (void)change(cell, word, SHMIPC_CELL_WORD(lap, 0, SHMIPC_CELL_ABORTED));
  } else if (word == SHMIPC_CELL_WORD(lap, id, SHMIPC_CELL_READING)) {
    (void)change(cell, word, SHMIPC_CELL_WORD(lap, 0, SHMIPC_CELL_RETURNED));
  }
  if (SHMIPC_PORT_ROLE(entry_word) == SHMIPC_RECEIVER) {
    add_to_returned(view);
  }
}

bool shmipc_mpmc_would_wait(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  bool sends = port->role == SHMIPC_SENDER;
  if (!sends &&
      __atomic_load_n(&view->channel->returned, __ATOMIC_SEQ_CST) != 0) {
    return false;
  }
  for (uint64_t i = 0; i < most_steps(view); i++) {
    uint64_t word = load(shmipc_cell_of(view, port->position));
    int32_t ahead = laps_ahead(view, word, port->position);
    uint32_t state = SHMIPC_CELL_STATE(word);
    if (!is_passed(view, port->role, port->position)) {
      if (ahead < 0) {
        // If it is no end, a call has to look.
        return is_end(port->role, ahead, state) &&
               follow_hint(port, port->position) == port->position;
      }
      return (sends
                  ? state != SHMIPC_CELL_FREE
                  : state == SHMIPC_CELL_FREE || state == SHMIPC_CELL_WRITING);
    }
    port->position = step(port, port->position, ahead, i);
  }
  return false;
}
