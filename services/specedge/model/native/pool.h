/* A few threads that share one loop at a time with the thread that calls. */
#ifndef SPECEDGE_POOL_H
#define SPECEDGE_POOL_H

#include <stdint.h>

typedef struct Pool Pool;
typedef void Work(void *context, int32_t index, int32_t worker);

/* `num_threads` includes the caller, whose worker number is 0. NULL: out of memory. Fewer threads run where the system
 * grants no more. */
Pool *pool_new(int32_t num_threads);
void pool_free(Pool *pool);
int32_t pool_size(const Pool *pool);

/* Keeps the threads awake between loops until `pool_rest`. */
void pool_wake(Pool *pool);
void pool_rest(Pool *pool);

/* Calls work(context, index, worker) for every index below num, on any thread; returns when all are done. */
void pool_run(Pool *pool, int32_t num, Work *work, void *context);

#endif
