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
//                  (exit_signal.c)
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
// more what it has written. If the signal turns out not to kill, it gives back
// those that it has.
//
// Whose the writers are. The child of a fork has copies of them, and until they
// are put in order (`bufio_exit_after_fork`) nobody in it may write them; the
// child of a vfork, or of a clone that shares memory, has the very same ones.
// So a page says which process may: its number, for who shares the page is
// another process, and the kernel wipes the page where it is copied, for in a
// namespace of its own the child may have the parent's number.
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
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bufio/exit_signal.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/lock_guard.h"
#include "bufio/writer_internal.h"

#define SLOTS_PER_CHUNK 62
// What a handler waits, for all writers together.
#define HANDLER_WAIT_MS 1000
#define WAIT_ROUND_NS 1000000
// After this long it is looked anew whether there is something to wait for.
#define LOOK_ROUND_MS 100

// Values of `busy`, beside the id of the thread whose fatal handler has it.
#define FREE 0
#define TAKEN (-1)

struct bufio_exit_slot {
  bufio_writer_t *writer;  // Guarded by busy.
  int busy;                // The lock, by compare-and-swap.
  int is_used;             // 0 or 1, by exchange: whose slot it is.
  bool may_block;          // Guarded by busy: not a regular file.
};

typedef struct slot_chunk {
  struct slot_chunk *next;  // Immutable.
  bufio_exit_slot_t slots[SLOTS_PER_CHUNK];
} slot_chunk_t;

static slot_chunk_t *chunks;  // Pushed by compare-and-swap; never popped.
static pthread_once_t quick_exit_once = PTHREAD_ONCE_INIT;

// The page of its own that says whose the writers are.
typedef struct exit_home {
  pid_t owner;  // 0 in a copy. Written by the owner.
} exit_home_t;

static exit_home_t *home;  // Set once, by compare-and-swap.

static bool try_take(bufio_exit_slot_t *slot, int holder) {
  int expected = FREE;
  // Acquire: pairs with the release of `give_back`.
  return __atomic_compare_exchange_n(&slot->busy, &expected, holder, false,
                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void give_back(bufio_exit_slot_t *slot) {
  __atomic_store_n(&slot->busy, FREE, __ATOMIC_RELEASE);
}

static void for_each_slot(void (*call)(bufio_exit_slot_t *slot)) {
  // Acquire: pairs with the push in `add_chunk`.
  for (slot_chunk_t *chunk = __atomic_load_n(&chunks, __ATOMIC_ACQUIRE);
       chunk != NULL; chunk = chunk->next) {
    for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
      call(&chunk->slots[i]);
    }
  }
}

// ---- whose the writers are ----

// Not libc's: before glibc 2.25 that remembered the number, for a copy too.
static pid_t own_number(void) {
  return (pid_t)syscall(SYS_getpid);
}

static pid_t owner(void) {
  // Acquire: pairs with `make_home`. What is in the page is this process's own
  // doing, or older than the process.
  const exit_home_t *mine = __atomic_load_n(&home, __ATOMIC_ACQUIRE);
  return mine != NULL ? __atomic_load_n(&mine->owner, __ATOMIC_RELAXED) : 0;
}

static bool is_owner(void) {
  return owner() == own_number();
}

static int make_home(void) {
  if (__atomic_load_n(&home, __ATOMIC_ACQUIRE) != NULL) {
    return 0;
  }
  const size_t size = (size_t)sysconf(_SC_PAGESIZE);
  int status = 0;
  exit_home_t *made =
      bufio_system->map(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &status);
  if (made == NULL) {
    return status;
  }
  // Before Linux 4.14 there is the number only.
  (void)bufio_system->advise(made, size, MADV_WIPEONFORK);
  made->owner = own_number();
  exit_home_t *expected = NULL;
  // Release: whoever finds the page finds it filled in.
  if (!__atomic_compare_exchange_n(&home, &expected, made, false,
                                   __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    (void)bufio_system->unmap(made, size);
  }
  return 0;
}

// The child has one thread, and no handler touches what has no owner.
void bufio_exit_after_fork(void) {
  if (home != NULL) {
    for_each_slot(give_back);
    __atomic_store_n(&home->owner, own_number(), __ATOMIC_RELEASE);
  }
}

static void forget_writer(bufio_exit_slot_t *slot) {
  slot->writer = NULL;
  give_back(slot);
}

// A copy of the process that was made past the handlers of fork, and opens a
// writer: what it has copies of is its parent's.
static void settle_in_copy(void) {
  if (owner() == 0) {
    for_each_slot(forget_writer);
    bufio_exit_after_fork();
  }
}

void bufio_exit_lock(bufio_exit_slot_t *slot, bufio_exit_hold_t *out_hold) {
  out_hold->cancel_state = bufio_hold_begin();
  if (slot == NULL) {
    return;
  }
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &out_hold->mask);
  while (!try_take(slot, TAKEN)) {
    sched_yield();
  }
}

void bufio_exit_unlock(bufio_exit_slot_t *slot, const bufio_exit_hold_t *hold) {
  if (slot != NULL) {
    give_back(slot);
    pthread_sigmask(SIG_SETMASK, &hold->mask, NULL);
  }
  bufio_hold_end(hold->cancel_state);
}

// ---- writing, async-signal-safe ----

bool bufio_exit_may_block(const bufio_exit_slot_t *slot) {
  return slot != NULL && slot->may_block;
}

void bufio_exit_look(bufio_exit_slot_t *slot, int descriptor) {
  struct stat stat;
  slot->may_block =
      bufio_system->stat(descriptor, &stat) < 0 || !S_ISREG(stat.st_mode);
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
    bool is_taken = try_take(slot, TAKEN);
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
      // Whatever it says, the next write knows better. In rounds: somebody may
      // write the bytes, fill the pipe again, or close the writer, meanwhile.
      (void)is_writable(
          descriptor, left > 0 && left < LOOK_ROUND_MS ? left : LOOK_ROUND_MS);
    } else {
      pause_round();
    }
  }
}

static int own_thread(void) {
  return (int)syscall(SYS_gettid);
}

// The process dies: keeps the lock.
static int flush_slot_fatal(bufio_exit_slot_t *slot, const wait_end_t *end) {
  const int self = own_thread();
  while (!try_take(slot, self)) {
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
  int result = 0;
  if (!is_owner()) {
    return 0;
  }
  int cancel_state = bufio_hold_begin();
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
  bufio_hold_end(cancel_state);
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

static void give_back_own(bufio_exit_slot_t *slot) {
  // Relaxed: nobody else stores or takes away this thread's id.
  if (__atomic_load_n(&slot->busy, __ATOMIC_RELAXED) == own_thread()) {
    give_back(slot);
  }
}

void bufio_exit_live_on(void) {
  if (is_owner()) {
    for_each_slot(give_back_own);
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
  if (make_home() < 0) {
    return NULL;
  }
  settle_in_copy();
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
    bufio_exit_signals_install();
  }
  bufio_exit_hold_t hold;
  bufio_exit_lock(slot, &hold);
  slot->may_block = false;
  if (on_signals) {
    bufio_exit_look(slot, writer->descriptor);
  }
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
