// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// channel: messages from process to process, through memory of a region.
//
// For: handing over bytes, at the price of a cache miss, with those that wait
// asleep. Not for: messages to several receivers each, priorities, other
// machines. What is larger than a few 100 KiB goes as a block (block.h): send
// its ref.
//
//   shmipc_channel_options_t options = {
//       .kind = SHMIPC_SPSC, .message_bytes = 1024, .capacity_messages = 256};
//   shmipc_ref_t ref;
//   int status = shmipc_channel_create(region, "jobs", &options, &ref);
//   if (status < 0 && status != -EEXIST) return status;   // -EEXIST: has a ref
//   shmipc_port_t *port;
//   status = shmipc_port_open(region, shmipc_ref_get(region, ref, 1),
//                             SHMIPC_SENDER, &port);
//   ...
//   status = shmipc_port_send(port, "hello", 5, SHMIPC_FOREVER);
//   ...                                          // and at the other end:
//   status = shmipc_port_receive(port, buffer, sizeof(buffer), &len, 1000000);
//
// Kinds. SHMIPC_SPSC: one sender and one receiver at a time; any lengths share
// one ring of bytes. SHMIPC_MPMC: any number of both, up to `max_ports`; each
// message has a slot of `message_bytes`, and goes to one receiver.
//
// Order. SPSC: as sent. MPMC: messages are taken in the order in which their
// places were reserved, so those of one sender are in order.
//
// Death. A process may be killed at any instruction:
//   - A message is there whole, or not at all. One that was being written is
//     passed over; nobody waits for it longer than about 1 ms.
//   - A message that a receiver had peeked at and not released is delivered
//     again: in SPSC to the next that opens the receiver's end, first; in MPMC
//     to any receiver, after others that were sent later, perhaps. So what was
//     received is received once, but what a process was working at when it died
//     comes at least once. (`receive` copies, then releases: if the process
//     dies in between, the message comes again.)
//   - The end of a dead process can be opened by another.
//   - When the last process at the other end died, calls say so, with
//     -EOWNERDEAD: a receiver's when no message is left, a sender's before it
//     sends. Call again to go on, or to wait for a successor. It is said at
//     least once for each such death, and seldom more often: if whoever
//     recovered it died of that, or was stopped in it, maybe much later. It may
//     be said late, after a successor has come and closed its port. Who closes
//     its port before it ends is not dead; `shut` says that no more will come.
//   Deaths are seen by those that wait, within about 5 ms (10 if they are woken
//   all the time), by calls that fail, and by `open`.
// A stopped process is alive. One that stops between reserve and commit holds
// up what was reserved after (MPMC), one that stops with a peeked message holds
// up senders once they come round to it: others time out.
//
// Cost. Sending and receiving make no system call while nobody sleeps or has
// just done so: one more may follow a sleep or an `arm` that has ended. SPSC
// has no locked instruction then, either, MPMC one at each end. Waiting looks
// for up to 50 microseconds and then sleeps; where looking was in vain several
// times in turn it is left out most of the time. Whoever falls asleep, or arms,
// after a stretch of messages that nobody slept in makes one call of
// membarrier(2): 0.2 microseconds, or some 16 if a process that has a port is
// running on another CPU. Where that is not permitted (a filter of system calls
// has to answer with an error) everything works, but those that sleep or poll
// wake up 1,000 times a second, and an SPSC receiver takes 1 ms to believe that
// the channel was shut, with a timeout of 0 too. Those that sleep ask the
// kernel for each port that is open, 200 times a second: with 1,024 of them 5 %
// of a CPU each. MPMC: a message that a dead receiver had, or that was too long
// for a buffer, is looked for in all cells: 0.4 ms for 65,536 of them, 33 ms
// for a million.
//
// Threads: a port is used by one thread at a time; different ports at once.
// fork: a child gets -ECHILD; it attaches and opens ports itself.

#ifndef MY_ALLOC_SHMIPC_CHANNEL_H_
#define MY_ALLOC_SHMIPC_CHANNEL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/ref.h"
#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

// A channel's memory starts at a multiple of this.
#define SHMIPC_CHANNEL_ALIGNMENT 64u
#define SHMIPC_CHANNEL_PORTS_MAX 1024u
// The longest message, and the most messages.
#define SHMIPC_MESSAGE_BYTES_MAX ((size_t)1 << 30)
#define SHMIPC_MESSAGES_MAX ((size_t)1 << 24)

typedef enum shmipc_channel_kind {
  SHMIPC_SPSC = 1,
  SHMIPC_MPMC = 2,
} shmipc_channel_kind_t;

typedef enum shmipc_role {
  SHMIPC_SENDER = 1,
  SHMIPC_RECEIVER = 2,
} shmipc_role_t;

typedef struct shmipc_channel_options {
  shmipc_channel_kind_t kind;
  // Of the longest message, 1 to SHMIPC_MESSAGE_BYTES_MAX.
  size_t message_bytes;
  // Every message has exactly `message_bytes`; others are -EMSGSIZE.
  bool is_fixed;
  // Longest messages that it holds at least, up to SHMIPC_MESSAGES_MAX; SPSC
  // holds more of shorter ones. MPMC: rounded up to a power of two. 0: 64.
  size_t capacity_messages;
  // MPMC: ports that may be open at one time, of both roles, up to
  // SHMIPC_CHANNEL_PORTS_MAX. 0: 16.
  uint32_t max_ports;
} shmipc_channel_options_t;

// -- Channels.

// Returns the bytes that a channel takes, 0 if the options are out of range.
SHMIPC_API size_t shmipc_channel_bytes(const shmipc_channel_options_t *options);

// Makes a channel in memory of a region: its data, when it is initialised, or a
// block. Nobody may be using the memory. -EINVAL (options, or not aligned to
// SHMIPC_CHANNEL_ALIGNMENT), -ENOSPC (`size_bytes` is too small).
SHMIPC_API SHMIPC_MUST_USE int shmipc_channel_init(
    void *memory, size_t size_bytes, const shmipc_channel_options_t *options);

// Makes a channel in a block of the region's heap, with a name (root.h). Of any
// number that call it at once one creates; the others get -EEXIST, and the ref
// of what has the name. Its end: shmipc_root_remove, and shmipc_block_free when
// all ports are closed. -EINVAL, -ENOMEM, and as shmipc_root_create.
SHMIPC_API SHMIPC_MUST_USE int shmipc_channel_create(
    shmipc_region_t *region, const char *name,
    const shmipc_channel_options_t *options, shmipc_ref_t *out_ref);

typedef struct shmipc_channel_info {
  shmipc_channel_kind_t kind;
  bool is_fixed;
  bool is_shut;
  size_t message_bytes;
  uint32_t num_senders;    // Open ports of live processes.
  uint32_t num_receivers;  // As above.
  uint32_t num_dead;       // Open ports of dead ones, of both roles.
} shmipc_channel_info_t;

// -EINVAL (not in the region), -EPROTO (no channel), -ECHILD.
SHMIPC_API SHMIPC_MUST_USE int shmipc_channel_info_get(
    shmipc_region_t *region, const void *channel,
    shmipc_channel_info_t *out_info);

// Checks a channel and changes nothing, as shmipc_region_verify, which looks at
// those that have names by itself. Returns the number of problems, at most one,
// -EINVAL, -EPROTO (no channel) or -ECHILD.
SHMIPC_API int shmipc_channel_verify(shmipc_region_t *region,
                                     const void *channel,
                                     shmipc_problem_fn_t *report,
                                     void *context);

// -- Ports: a process's ends of channels.

typedef struct shmipc_port shmipc_port_t;

// Opens an end of a channel, taking over from the dead. `channel` is where it
// is in this process (NULL is -EINVAL). Close the port before the region.
// -EBUSY (SPSC: a living process has that end), -EUSERS (MPMC: `max_ports` are
// open), -EPROTO (no channel, or damaged), -EINVAL, -ENOMEM, -EROFS, -ECHILD.
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_open(shmipc_region_t *region,
                                                void *channel,
                                                shmipc_role_t role,
                                                shmipc_port_t **out_port);

// Closes it. A message that was reserved is aborted; one that was peeked at is
// there for others, as after a death. NULL is a no-op.
SHMIPC_API void shmipc_port_close(shmipc_port_t *port);

// Says that no more messages will be sent, by anybody, and wakes all: senders
// get -EPIPE, receivers too, once no message is left. One that a living
// receiver has peeked at is that one's; should it die, or close its port, it is
// there for those that ask again. -ECHILD.
//
// It is for when all senders are done. MPMC: what was reserved before can be
// committed, and receivers wait for it. SPSC: the receiver cannot see it and
// may have got -EPIPE, so a commit (also that of `send`) after `shut` says
// -EPIPE: the message may come all the same, to one that receives again.
SHMIPC_API int shmipc_port_shut(shmipc_port_t *port);

// -- Messages. All: -ETIMEDOUT (at once, if `timeout_ns` is 0 and it would have
// to wait), -EPIPE (shut), -EOWNERDEAD (the last at the other end died; said
// once), -EPROTO (damaged memory), -EPERM (not this role's), -ECHILD.

// Sends a copy of `len` bytes, 0 or more. -EMSGSIZE, -EBUSY (a message is
// reserved).
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_send(shmipc_port_t *port,
                                                const void *data, size_t len,
                                                int64_t timeout_ns);

// Receives one into `buffer` and stores its length. -EMSGSIZE: it is longer
// than `size_bytes`; `out_len` has its length and it stays there. -EBUSY (one
// is peeked at).
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_receive(shmipc_port_t *port,
                                                   void *buffer,
                                                   size_t size_bytes,
                                                   size_t *out_len,
                                                   int64_t timeout_ns);

// Stores where `len` bytes can be written, aligned to 16, until commit or
// abort. Nobody sees them before. -EMSGSIZE, -EBUSY (one is reserved already).
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_reserve(shmipc_port_t *port,
                                                   size_t len, void **out_data,
                                                   int64_t timeout_ns);
// Sends the first `len` bytes of what was reserved. -EINVAL (nothing was),
// -EMSGSIZE (more than that; it stays reserved), -EPIPE (SPSC, see `shut`; it
// is no longer reserved), -EPERM, -ECHILD.
SHMIPC_API int shmipc_port_commit(shmipc_port_t *port, size_t len);
// Gives up what was reserved. MPMC: its place is free again once a receiver has
// passed it. -EINVAL, -EPERM, -ECHILD.
SHMIPC_API int shmipc_port_abort(shmipc_port_t *port);

// Stores where the next message is, aligned to 16, and its length; it stays
// there until `release`. -EBUSY (one is peeked at already). Others may write
// the memory of a region at any time: who does not trust them copies first.
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_peek(shmipc_port_t *port,
                                                const void **out_data,
                                                size_t *out_len,
                                                int64_t timeout_ns);
// Is done with it: its room is for others. -EINVAL (nothing peeked at), -EPERM,
// -ECHILD.
SHMIPC_API int shmipc_port_release(shmipc_port_t *port);

// -- Poll loops.
//
//   struct pollfd waits[2] = {{.fd = shmipc_port_fd(port), .events = POLLIN},
//                             ...};
//   for (;;) {
//     while (shmipc_port_receive(port, ..., 0) == 0) {...}
//     if (shmipc_port_arm(port) == 0) {   // Nothing there: sleep.
//       poll(waits, 2, -1);
//     }
//   }
//
// The descriptor becomes readable when there is a message (a sender's: room),
// the channel is shut, or somebody died; now and then it is readable for
// nothing. It is this process's alone: nothing has to be passed to those at the
// other end. They find its address in the channel, and notify it by a datagram
// (Unix socket, abstract name) only while it is armed. Should that not arrive,
// as its sender was killed just before or is in another network namespace, a
// timer of 4 ms (1 ms, see Cost) makes it readable. The address is no secret:
// any user of the machine can make the descriptor readable for nothing, again
// and again.

// Returns the descriptor, which the port makes with the first call and closes
// with itself. Only for poll, epoll and the like. -EMFILE, -ENFILE, -ENOMEM,
// -ECHILD.
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_fd(shmipc_port_t *port);

// Makes the descriptor unreadable until something happens: 0. -EAGAIN if
// something has: do not poll. -EINVAL (no descriptor), -ECHILD.
SHMIPC_API SHMIPC_MUST_USE int shmipc_port_arm(shmipc_port_t *port);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_CHANNEL_H_
