/* A loop's indices are handed out by a ticket that carries the loop's number and length as well: a thread that comes
 * late, or never (after a fork), takes none, and nobody waits for it. */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { INDEX_BITS = 20, MAX_INDICES = 1 << INDEX_BITS };
enum { SPINS_BEFORE_YIELD = 4000, YIELDS_BEFORE_SLEEP = 50 };

struct Pool {
    _Alignas(64) atomic_uint_fast64_t ticket; /* loop number, its length, next index: 24, 20 and 20 bits */
    _Alignas(64) atomic_int num_done;
    _Alignas(64) _Atomic(Work *) work;
    _Atomic(void *) context;
    _Alignas(64) atomic_int is_awake, is_closing, num_sleeping;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int32_t num_threads;
    uint32_t loop;
    pthread_t threads[];
};

typedef struct {
    Pool *pool;
    int32_t worker;
} Start;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes an index of the present loop and does it; 0: there is none. */
static int take(Pool *pool, int32_t worker) {
    uint_fast64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    for (;;) {
        Work *work = atomic_load_explicit(&pool->work, memory_order_relaxed);
        void *context = atomic_load_explicit(&pool->context, memory_order_relaxed);
        const uint_fast64_t index = ticket % MAX_INDICES, num = (ticket >> INDEX_BITS) % MAX_INDICES;
        if (index >= num) return 0;
        /* Success means that the loop whose work was read above is still the present one, and waits for this index. */
        if (atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            work(context, (int32_t)index, worker);
            atomic_fetch_add_explicit(&pool->num_done, 1, memory_order_release);
            return 1;
        }
    }
}

static void sleep_until_woken(Pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->num_sleeping, 1);
    while (!atomic_load(&pool->is_awake) && !atomic_load(&pool->is_closing))
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->num_sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *serve(void *argument) {
    const Start start = *(Start *)argument;
    free(argument);
    int num_idle = 0;
    while (!atomic_load_explicit(&start.pool->is_closing, memory_order_relaxed)) {
        if (take(start.pool, start.worker)) {
            num_idle = 0;
        } else if (++num_idle < SPINS_BEFORE_YIELD) {
            relax();
        } else if (num_idle < SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP) {
            sched_yield();
        } else {
            sleep_until_woken(start.pool);
            num_idle = 0;
        }
    }
    return NULL;
}

Pool *pool_new(int32_t num_threads) {
    Pool *pool = NULL;
    const size_t size = sizeof(Pool) + (size_t)num_threads * sizeof(pthread_t);
    if (posix_memalign((void **)&pool, 64, size)) return NULL;
    *pool = (Pool){.num_threads = 1};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    sigset_t all, before; /* signals are the main thread's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool->num_threads < num_threads; pool->num_threads++) {
        Start *start = malloc(sizeof(Start));
        if (!start) break;
        *start = (Start){pool, pool->num_threads};
        if (pthread_create(&pool->threads[pool->num_threads], NULL, serve, start)) {
            free(start);
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool;
}

void pool_free(Pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->is_closing, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 1; i < pool->num_threads; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

int32_t pool_size(const Pool *pool) { return pool->num_threads; }

void pool_wake(Pool *pool) {
    if (pool->num_threads == 1) return;
    atomic_store(&pool->is_awake, 1);
    if (!atomic_load(&pool->num_sleeping)) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void pool_rest(Pool *pool) { atomic_store(&pool->is_awake, 0); }

void pool_run(Pool *pool, int32_t num, Work *work, void *context) {
    if (pool->num_threads == 1 || num <= 1 || num >= MAX_INDICES) {
        for (int32_t index = 0; index < num; index++) work(context, index, 0);
        return;
    }
    atomic_store_explicit(&pool->num_done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->work, work, memory_order_relaxed);
    atomic_store_explicit(&pool->context, context, memory_order_relaxed);
    const uint_fast64_t ticket = (uint_fast64_t)++pool->loop << (2 * INDEX_BITS) | (uint_fast64_t)num << INDEX_BITS;
    atomic_store_explicit(&pool->ticket, ticket, memory_order_release);
    while (take(pool, 0)) {
    }
    for (int spins = 0; atomic_load_explicit(&pool->num_done, memory_order_acquire) < num; spins++)
        if (spins < SPINS_BEFORE_YIELD)
            relax();
        else
            sched_yield();
}
