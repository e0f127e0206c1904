// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Writing what is committed when the process ends, from whatever place it ends.
//
// A signal handler may interrupt anything, so it may lock nothing that the
// interrupted thread could hold, and free nothing it could be walking. Writers
// are therefore entered in slots of a list that only grows, and each slot has a
// lock, `busy`, that a thread holds only with all signals blocked: a handler
// that finds it taken knows that *another* thread has it, which will let it go.
//
//   exit           destructor of this library, after all handlers of atexit
//   quick_exit     at_quick_exit
//   fatal signals  handlers, abort's SIGABRT too; then the default action
//
// The destructor rather than atexit: handlers that the program registered may
// still write.
//
// A descriptor that may block (pipe, socket, terminal) is waited for without
// the lock, with signals as they are, and written without waiting; so a thread
// that waits for a reader can be killed, one that exits too. Where the kernel
// cannot but wait in write(2) (terminals that are attached, pipes before Linux
// 6.5), a piece is no larger than what fits when poll(2) says so.
//
// How long it waits, for readers and for threads that have a lock:
//
//   exit, quick_exit       as long as it takes, with neither a lock nor signals
//                          held, so the process can be killed meanwhile
//   bufio_exit_flush_all   a second for all writers together: a handler must
//                          return
//   a fatal signal         the same: the process must die
//
// When the second is over the writers that are left are tried once each.
//
// A fatal handler keeps the locks: threads that still run cannot write once
// more what it has written.
//
// A thread that holds a lock is not cancelled: nobody else would let it go.
//
// Invariants:
// 1. A slot's writer is set and cleared with `busy` held.
// 2. `written`, `buffer`, `commit_bias` of a writer in a slot change with it
//    held; the cursor may move forward without.

#include "bufio/exit_flush.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/writer_internal.h"

#define SLOTS_PER_CHUNK 62
// What a handler waits, for all writers together.
#define HANDLER_WAIT_MS 1000
#define WAIT_ROUND_NS 1000000

struct bufio_exit_slot {
  bufio_writer_t *writer;  // Guarded by busy.
  int busy;                // 0 free, 1 taken, by exchange.
  int is_used;             // 0 or 1, by exchange: whose slot it is.
  bool may_block;          // Written before `writer`: not a regular file.
};

typedef struct slot_chunk {
  struct slot_chunk *next;  // Immutable.
  bufio_exit_slot_t slots[SLOTS_PER_CHUNK];
} slot_chunk_t;

static slot_chunk_t *chunks;  // Pushed by compare-and-swap; never popped.
static pthread_once_t signals_once = PTHREAD_ONCE_INIT;
static pthread_once_t quick_exit_once = PTHREAD_ONCE_INIT;

// What kills a process that does not ask for it, beside the real-time signals;
// SIGKILL cannot be caught.
static const int fatal_signals[] = {
    SIGHUP,  SIGINT,  SIGQUIT, SIGILL,    SIGTRAP, SIGABRT,   SIGBUS,  SIGFPE,
    SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE,   SIGALRM, SIGTERM,   SIGXCPU, SIGXFSZ,
    SIGPROF, SIGSYS,  SIGIO,   SIGVTALRM, SIGPWR,  SIGSTKFLT,
};

static bool try_take(bufio_exit_slot_t *slot) {
  // Acquire: pairs with the release of `give_back`.
  return __atomic_exchange_n(&slot->busy, 1, __ATOMIC_ACQUIRE) == 0;
}

static void give_back(bufio_exit_slot_t *slot) {
  __atomic_store_n(&slot->busy, 0, __ATOMIC_RELEASE);
}

void bufio_exit_lock(bufio_exit_slot_t *slot, bufio_exit_hold_t *out_hold) {
  if (slot == NULL) {
    return;
  }
  sigset_t all;
  sigfillset(&all);
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &out_hold->cancel_state);
  pthread_sigmask(SIG_BLOCK, &all, &out_hold->mask);
  while (!try_take(slot)) {
    sched_yield();
  }
}

void bufio_exit_unlock(bufio_exit_slot_t *slot, const bufio_exit_hold_t *hold) {
  if (slot == NULL) {
    return;
  }
  int disabled;
  give_back(slot);
  pthread_sigmask(SIG_SETMASK, &hold->mask, NULL);
  pthread_setcancelstate(hold->cancel_state, &disabled);
}

void bufio_exit_reset(bufio_exit_slot_t *slot) {
  if (slot != NULL) {
    give_back(slot);
  }
}

// ---- writing, async-signal-safe ----

bool bufio_exit_may_block(const bufio_exit_slot_t *slot) {
  return slot != NULL && slot->may_block;
}

static bool is_writable(int descriptor, int timeout_ms) {
  struct pollfd request = {.fd = descriptor, .events = POLLOUT};
  return poll(&request, 1, timeout_ms) > 0;
}

static int64_t write_piece(const bufio_exit_slot_t *slot,
                           const unsigned char *bytes, size_t len) {
  bufio_writer_t *writer = slot->writer;
  if (writer->journal != NULL) {
    return bufio_system->write_at(writer->descriptor, bytes, len,
                                  writer->written);
  }
  if (!slot->may_block) {
    return bufio_system->write(writer->descriptor, bytes, len);
  }
  len = len < BUFIO_EXIT_PIECE_BYTES ? len : BUFIO_EXIT_PIECE_BYTES;
  return is_writable(writer->descriptor, 0)
             ? bufio_system->write_now(writer->descriptor, bytes, len)
             : -EAGAIN;
}

// Writes as much as goes without waiting. The slot is locked. Returns 0 when
// nothing is left, -EAGAIN if the rest has to wait for a reader, or what it was
// refused with.
static int write_committed(const bufio_exit_slot_t *slot) {
  bufio_writer_t *writer = slot->writer;
  if (writer == NULL || writer->is_foreign) {
    return 0;
  }
  // Acquire: pairs with the release of `bufio_writer_publish`.
  const unsigned char *cursor =
      __atomic_load_n(&writer->cursor, __ATOMIC_ACQUIRE);
  uint64_t end = (uint64_t)(uintptr_t)cursor + writer->commit_bias;
  if (writer->error != 0) {
    return writer->written < end ? writer->error : 0;
  }
  while (writer->written < end) {
    size_t len = (size_t)(end - writer->written);
    int64_t count =
        write_piece(slot, bufio_writer_at(writer, writer->written), len);
    if (count == -EINTR) {
      continue;
    }
    if (count <= 0 || count > (int64_t)len) {
      return count < 0 ? (int)count : -EIO;
    }
    // Relaxed: pairs with `written_hint` of the writer.
    __atomic_store_n(&writer->written, writer->written + (uint64_t)count,
                     __ATOMIC_RELAXED);
    if (writer->journal != NULL) {
      // One store. Were the word to lag, a writer that lives on would reuse the
      // ring's bytes before it, which a replay takes for the file's.
      bufio_journal_set_written(writer->journal, writer->written);
    }
  }
  return 0;
}

// ---- waiting, async-signal-safe ----

// Until when somebody waits.
typedef struct wait_end {
  bool is_bounded;
  int64_t at_ms;
} wait_end_t;

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static wait_end_t wait_of_handler(void) {
  return (wait_end_t){.is_bounded = true, .at_ms = now_ms() + HANDLER_WAIT_MS};
}

// As poll(2) takes it: -1 without a bound, 0 when it is over.
static int left_ms(const wait_end_t *end) {
  if (!end->is_bounded) {
    return -1;
  }
  int64_t left = end->at_ms - now_ms();
  return left > 0 ? (int)left : 0;
}

static void pause_round(void) {
  const struct timespec pause = {.tv_sec = 0, .tv_nsec = WAIT_ROUND_NS};
  nanosleep(&pause, NULL);
}

// The process lives on, or exits: what it waits for, it waits for with neither
// the lock nor signals held. Returns 0, why something is left, or -ETIMEDOUT.
static int flush_slot(bufio_exit_slot_t *slot, const wait_end_t *end) {
  sigset_t all;
  sigset_t mask;
  sigfillset(&all);
  for (;;) {
    pthread_sigmask(SIG_BLOCK, &all, &mask);
    bool is_taken = try_take(slot);
    int status = is_taken ? write_committed(slot) : -EAGAIN;
    bool is_full = is_taken && status == -EAGAIN;
    int descriptor = is_full ? slot->writer->descriptor : -1;
    if (is_taken) {
      give_back(slot);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (status != -EAGAIN) {
      return status;
    }
    int left = left_ms(end);
    if (left == 0) {
      return -ETIMEDOUT;
    }
    if (is_full) {
      // Whatever it says, the next write knows better.
      (void)is_writable(descriptor, left);
    } else {
      pause_round();
    }
  }
}

// The process dies: keeps the lock.
static int flush_slot_fatal(bufio_exit_slot_t *slot, const wait_end_t *end) {
  while (!try_take(slot)) {
    if (left_ms(end) == 0) {
      return -ETIMEDOUT;
    }
    pause_round();
  }
  int status;
  while ((status = write_committed(slot)) == -EAGAIN) {
    int left = left_ms(end);
    if (left == 0) {
      return -ETIMEDOUT;
    }
    (void)is_writable(slot->writer->descriptor, left);
  }
  return status;
}

// Returns 0 when nothing is left of any writer, or why: the first refusal, else
// -ETIMEDOUT.
static int flush_slots(int (*flush)(bufio_exit_slot_t *, const wait_end_t *),
                       wait_end_t end) {
  int saved_errno = errno;
  int cancel_state;
  int disabled;
  int result = 0;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  // Acquire: pairs with the push in `add_chunk`.
  for (slot_chunk_t *chunk = __atomic_load_n(&chunks, __ATOMIC_ACQUIRE);
       chunk != NULL; chunk = chunk->next) {
    for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
      bufio_exit_slot_t *slot = &chunk->slots[i];
      // Relaxed: only a hint; `busy` guards the writer.
      if (__atomic_load_n(&slot->is_used, __ATOMIC_RELAXED) != 0) {
        int status = flush(slot, &end);
        if (result == 0 || (result == -ETIMEDOUT && status != 0)) {
          result = status;
        }
      }
    }
  }
  pthread_setcancelstate(cancel_state, &disabled);
  errno = saved_errno;
  return result;
}

int bufio_exit_flush_all(void) {
  return flush_slots(flush_slot, wait_of_handler());
}

__attribute__((destructor)) static void flush_at_exit(void) {
  (void)flush_slots(flush_slot, (wait_end_t){.is_bounded = false});
}

void bufio_exit_flush_fatal(void) {
  sigset_t all;
  sigset_t mask;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &mask);
  (void)flush_slots(flush_slot_fatal, wait_of_handler());
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static void on_fatal_signal(int signal_number) {
  bufio_exit_flush_fatal();
  // The signal is blocked until this returns, and then does what it would have
  // done without us. A fault happens again by itself.
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

static void install_signal(int number, const struct sigaction *ours) {
  struct sigaction now;
  if (sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
      now.sa_handler == SIG_DFL) {
    sigaction(number, ours, NULL);
  }
}

static void install_signals(void) {
  struct sigaction ours = {.sa_handler = on_fatal_signal,
                           .sa_flags = SA_ONSTACK};
  // One signal at a time: a second one must find the first done.
  sigfillset(&ours.sa_mask);
  for (size_t i = 0; i < sizeof(fatal_signals) / sizeof(*fatal_signals); i++) {
    install_signal(fatal_signals[i], &ours);
  }
  for (int number = SIGRTMIN; number <= SIGRTMAX; number++) {
    install_signal(number, &ours);
  }
}

static void install_quick_exit(void) {
  at_quick_exit(flush_at_exit);
}

// ---- slots ----

static bufio_exit_slot_t *claim(slot_chunk_t *chunk) {
  for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
    // Acquire: pairs with the release of `bufio_exit_remove`.
    if (__atomic_exchange_n(&chunk->slots[i].is_used, 1, __ATOMIC_ACQUIRE) ==
        0) {
      return &chunk->slots[i];
    }
  }
  return NULL;
}

static bufio_exit_slot_t *add_chunk(void) {
  slot_chunk_t *chunk = calloc(1, sizeof(*chunk));
  if (chunk == NULL) {
    return NULL;
  }
  bufio_exit_slot_t *slot = claim(chunk);
  slot_chunk_t *first = __atomic_load_n(&chunks, __ATOMIC_RELAXED);
  do {
    chunk->next = first;
    // Release: whoever finds the chunk finds it filled in.
  } while (!__atomic_compare_exchange_n(&chunks, &first, chunk, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  return slot;
}

bufio_exit_slot_t *bufio_exit_add(bufio_writer_t *writer, bool on_signals) {
  bufio_exit_slot_t *slot = NULL;
  for (slot_chunk_t *chunk = __atomic_load_n(&chunks, __ATOMIC_ACQUIRE);
       chunk != NULL && slot == NULL; chunk = chunk->next) {
    slot = claim(chunk);
  }
  if (slot == NULL) {
    slot = add_chunk();
  }
  if (slot == NULL) {
    return NULL;
  }
  pthread_once(&quick_exit_once, install_quick_exit);
  if (on_signals) {
    pthread_once(&signals_once, install_signals);
  }
  struct stat stat;
  slot->may_block =
      on_signals && (bufio_system->stat(writer->descriptor, &stat) < 0 ||
                     !S_ISREG(stat.st_mode));
  bufio_exit_hold_t hold;
  bufio_exit_lock(slot, &hold);
  slot->writer = writer;
  bufio_exit_unlock(slot, &hold);
  return slot;
}

void bufio_exit_remove(bufio_exit_slot_t *slot) {
  if (slot == NULL) {
    return;
  }
  bufio_exit_hold_t hold;
  bufio_exit_lock(slot, &hold);
  slot->writer = NULL;
  bufio_exit_unlock(slot, &hold);
  __atomic_store_n(&slot->is_used, 0, __ATOMIC_RELEASE);
}
