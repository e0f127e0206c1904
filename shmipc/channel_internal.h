// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A process's side of a channel, and what its units have in common. Internal.

#ifndef MY_ALLOC_SHMIPC_CHANNEL_INTERNAL_H_
#define MY_ALLOC_SHMIPC_CHANNEL_INTERNAL_H_

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/barrier.h"
#include "shmipc/channel.h"
#include "shmipc/channel_layout.h"
#include "shmipc/region_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

// A channel whose geometry was checked. The sizes are this process's own.
typedef struct shmipc_view {
  shmipc_region_t *region;
  shmipc_channel_t *channel;
  unsigned char *ring;
  uint64_t message_bytes;
  uint64_t ring_bytes;  // SPSC.
  uint64_t cell_bytes;  // MPMC.
  uint64_t mask;        // MPMC: cells - 1.
  uint32_t lap_shift;   // MPMC: a position, shifted, is its lap.
  uint32_t max_ports;
  uint32_t kind;
  bool is_fixed;
} shmipc_view_t;

struct shmipc_port {
  // Immutable.
  shmipc_view_t view;
  uint64_t serial;  // Of the attachment.
  shmipc_port_entry_t *entry;
  uint64_t word;  // Of the entry.
  uint64_t id;    // Of cells that are ours.
  uint32_t index;
  uint32_t role;

  // Of the thread that uses it.
  // SPSC: offset of the next record. MPMC: where to look next.
  uint64_t position;
  uint64_t head_seen;  // SPSC, sender.
  // The message at hand, reserved or peeked at.
  bool has_message;
  bool has_wrapped;  // SPSC: it is at the start of the ring, not at `place`.
  bool is_pending;   // MPMC: somebody is writing the next message.
  bool is_damaged;   // SPSC: no way to go on.
  uint64_t place;    // SPSC: offset of its record. MPMC: its position.
  unsigned char *payload;
  size_t len;

  // All bits: this process could not register, so it has a barrier of its own
  // whenever it notifies. Or 0.
  uint32_t always_fences;
  uint32_t num_quiet;  // Notifications in turn, with one, that found nobody.
  bool has_seen_shut;  // SPSC, receiver: what was sent before is there.

  uint32_t deaths_told;  // At the other end.
  uint32_t num_misses;   // Waits in turn that were not over while spinning.
  uint32_t waits_to_skip;
  uint64_t waited_at;  // `position` at the last wait.
  int64_t checked_ns;  // When peers were asked for.
  int poll_fd;         // The epoll that others poll; -1: none.
  int socket_fd;       // In it, for notifications.
  int timer_fd;        // In it.
  int sending_fd;
};

static inline uint32_t shmipc_other_side(uint32_t role) {
  return SHMIPC_RECEIVER - role;  // Sides are roles less one.
}

static inline shmipc_cell_t *shmipc_cell_of(const shmipc_view_t *view,
                                            uint64_t position) {
  return (shmipc_cell_t *)(void *)(view->ring +
                                   (position & view->mask) * view->cell_bytes);
}

static inline uint32_t shmipc_lap_of(const shmipc_view_t *view,
                                     uint64_t position) {
  return (uint32_t)(position >> view->lap_shift);
}

// Acquire: pairs with the release of whoever wrote it.
static inline uint64_t *shmipc_record_word(const shmipc_view_t *view,
                                           uint64_t offset) {
  return (uint64_t *)(void *)(view->ring + offset + 8);
}

// channel_verify.c, as look_fn_t: the channel at index * 64; and the one that
// root `index` leads to, if it does.
const char *shmipc_look_at_channel(const shmipc_region_t *region,
                                   uint32_t index, uint64_t *out_offset,
                                   uint64_t *out_value);
const char *shmipc_look_at_root_channel(const shmipc_region_t *region,
                                        uint32_t index, uint64_t *out_offset,
                                        uint64_t *out_value);

// channel.c
// Checks a channel's geometry and copies it. -EINVAL, -EPROTO, -ECHILD.
int shmipc_view_make(shmipc_region_t *region, const void *memory,
                     shmipc_view_t *out_view);

// spsc.c, mpmc.c. Attach finds where to begin: -EPROTO. Reserve and peek set
// the message at hand: -EAGAIN, -EPROTO.
int shmipc_spsc_attach(shmipc_port_t *port);
int shmipc_spsc_reserve(shmipc_port_t *port, size_t len);
void shmipc_spsc_commit(shmipc_port_t *port, size_t len);
int shmipc_spsc_peek(shmipc_port_t *port);
void shmipc_spsc_release(shmipc_port_t *port);
// The word of the record at `offset` and of the one behind it. -EAGAIN (there
// is none), -EPROTO.
int shmipc_spsc_record(const shmipc_view_t *view, uint64_t offset,
                       uint64_t *out_place, size_t *out_len,
                       uint64_t *out_next);

// Whether the next message cannot be reserved (a longest one) or peeked at.
bool shmipc_spsc_would_wait(shmipc_port_t *port);

int shmipc_mpmc_attach(shmipc_port_t *port);
int shmipc_mpmc_reserve(shmipc_port_t *port);
void shmipc_mpmc_commit(shmipc_port_t *port, size_t len);
void shmipc_mpmc_abort(shmipc_port_t *port);
int shmipc_mpmc_peek(shmipc_port_t *port);
void shmipc_mpmc_release(shmipc_port_t *port);
// Gives back what was peeked at.
void shmipc_mpmc_return(shmipc_port_t *port);
bool shmipc_mpmc_would_wait(shmipc_port_t *port);
// Deals with the message that a dead port was at.
void shmipc_mpmc_recover(const shmipc_view_t *view, uint32_t index,
                         uint64_t entry_word);

// port.c
bool shmipc_port_is_alive(const shmipc_view_t *view, uint64_t entry_word);
// Recovers the ports of the dead.
void shmipc_port_check_peers(shmipc_port_t *port);
bool shmipc_port_has_peer(const shmipc_port_t *port);

// port_wait.c
// Waits until the message can be reserved or peeked at.
int shmipc_port_wait(shmipc_port_t *port, size_t len, int64_t timeout_ns);
// 0, -EPIPE or -EOWNERDEAD; the latter is told by this.
int shmipc_port_look(shmipc_port_t *port, size_t len);
// Whether a call would wait, and has nothing to tell.
bool shmipc_port_would_wait(shmipc_port_t *port);
void shmipc_port_notify_slow(shmipc_port_t *port, uint32_t side);
void shmipc_port_notify_all(shmipc_port_t *port);

// port_fence.c
// For one that waits, between setting the bit and looking again: whoever has
// notified before has stored what it had to, and whoever does later sees the
// bit. False: that is not so; do not sleep for long.
bool shmipc_port_fence_others(shmipc_port_t *port);
void shmipc_port_notify_fenced(shmipc_port_t *port, uint32_t side);

// port_poll.c
// Notifies those that poll.
void shmipc_port_notify_polls(shmipc_port_t *port, uint32_t side);
void shmipc_port_poll_close(shmipc_port_t *port);

// One try to have a message at hand: 0, -EAGAIN, -EPROTO.
static inline int shmipc_port_attempt(shmipc_port_t *port, size_t len) {
  if (port->view.kind == SHMIPC_SPSC) {
    return port->role == SHMIPC_SENDER ? shmipc_spsc_reserve(port, len)
                                       : shmipc_spsc_peek(port);
  }
  if (port->role == SHMIPC_RECEIVER) {
    return shmipc_mpmc_peek(port);
  }
  int status = shmipc_mpmc_reserve(port);
  port->len = len;
  return status;
}

// Wakes those of a side who sleep or poll, after the store of what they wait
// for: they set the bit, have our barrier done, and then look (port_fence.c).
static inline void shmipc_port_notify(shmipc_port_t *port, uint32_t side) {
  shmipc_side_t *theirs = &port->view.channel->sides[side];
  shmipc_barrier_by_others();
  // Sequentially consistent, both: who sees the mode PLAIN sees the bits of
  // those that have seen it FENCED.
  uint32_t fence = __atomic_load_n(&theirs->fence, __ATOMIC_SEQ_CST);
  if (__builtin_expect((SHMIPC_FENCE_MODE(fence) | port->always_fences) != 0,
                       0)) {
    shmipc_port_notify_fenced(port, side);
  } else if (__builtin_expect(
                 (__atomic_load_n(&theirs->event.word, __ATOMIC_SEQ_CST) &
                  1u) != 0,
                 0)) {
    shmipc_port_notify_slow(port, side);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_CHANNEL_INTERNAL_H_
