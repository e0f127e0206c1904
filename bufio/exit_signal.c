// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Fatal signals: write what is committed, then die as without us.
//
// What follows the default action:
//
//   sent by somebody     raised again, open to it: the process is dead, or the
//                        kernel ignores the signal (PID 1 of a container, whose
//                        default actions do not kill; a debugger that drops
//                        it). Then nothing has happened: the locks are given
//                        back and the handler stays.
//   a fault              raised again, and left pending until the handler has
//                        returned, so that a dump shows where it was. PID 1
//                        drops that too, but the instruction is run again, and
//                        a fault kills PID 1 as well.
//   a trap, a filtered   as a fault, but the instruction is not run again. PID
//   1 system call          exits as a shell would say it.

#include "bufio/exit_signal.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

#include "bufio/exit_flush.h"

// What kills a process that does not ask for it, beside the real-time signals;
// SIGKILL cannot be caught.
static const int fatal_signals[] = {
    SIGHUP,  SIGINT,  SIGQUIT, SIGILL,    SIGTRAP, SIGABRT,   SIGBUS,  SIGFPE,
    SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE,   SIGALRM, SIGTERM,   SIGXCPU, SIGXFSZ,
    SIGPROF, SIGSYS,  SIGIO,   SIGVTALRM, SIGPWR,  SIGSTKFLT,
};

static pthread_once_t once = PTHREAD_ONCE_INIT;

// Whether the instruction that the handler returns to does it again.
static bool happens_again(int number, const siginfo_t *info) {
  return info->si_code > 0 && (number == SIGSEGV || number == SIGBUS ||
                               number == SIGILL || number == SIGFPE);
}

static bool is_forced(int number, const siginfo_t *info) {
  return info->si_code > 0 && (number == SIGTRAP || number == SIGSYS);
}

void bufio_exit_die(int number, const siginfo_t *info) {
  int saved_errno = errno;
  struct sigaction fatal = {.sa_handler = SIG_DFL};
  struct sigaction ours;
  sigset_t only;
  sigset_t mask;
  sigemptyset(&only);
  sigaddset(&only, number);
  bufio_exit_flush_fatal();
  sigaction(number, &fatal, &ours);
  if (happens_again(number, info)) {
    pthread_sigmask(SIG_BLOCK, &only, NULL);
    raise(number);
    return;
  }
  pthread_sigmask(SIG_UNBLOCK, &only, &mask);
  raise(number);
  if (is_forced(number, info)) {
    _exit(128 + number);
  }
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  sigaction(number, &ours, NULL);
  bufio_exit_live_on();
  errno = saved_errno;
}

static void on_fatal_signal(int number, siginfo_t *info, void *context) {
  (void)context;
  bufio_exit_die(number, info);
}

static void install_signal(int number, const struct sigaction *ours) {
  struct sigaction now;
  if (sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
      now.sa_handler == SIG_DFL) {
    sigaction(number, ours, NULL);
  }
}

static void install(void) {
  struct sigaction ours = {.sa_sigaction = on_fatal_signal,
                           .sa_flags = SA_SIGINFO | SA_ONSTACK};
  // One signal at a time: a second one must find the first done.
  sigfillset(&ours.sa_mask);
  for (size_t i = 0; i < sizeof(fatal_signals) / sizeof(*fatal_signals); i++) {
    install_signal(fatal_signals[i], &ours);
  }
  for (int number = SIGRTMIN; number <= SIGRTMAX; number++) {
    install_signal(number, &ours);
  }
}

void bufio_exit_signals_install(void) {
  pthread_once(&once, install);
}
