// Parallel loops that no descheduled thread can hold up.
//
// A barrier waits for every thread of a team, also for one that never got a core: on a machine that
// is shared with a server process, a step of a hundred barriers then takes seconds. Here the caller
// takes tasks until none is left, helpers take some if they come in time, and nobody waits for a
// helper that took none.
//
//   caller   |open| t0 t2 t3 t5 ... |close| wait while a helper is inside |
//   helper        |enter| t1 t4 ... |leave|
//   helper, late                             finds the gate closed: nothing to do
//
// Helpers spin for a while after a loop, as in a step the next one follows soon, and
// then sleep. A second caller at the same time runs its loop alone.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    // body(i) for every i in [0, n), on the caller and at most `threads` - 1 helpers.
    template <class Body>
    void run(int64_t n, int threads, const Body& body) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (threads <= 1 || n <= 1 || !mine) {
            for (int64_t i = 0; i < n; i++) body(i);
            return;
        }
        while (helpers_ < threads - 1) std::thread(&Pool::help, this, helpers_++).detach();
        call_ = [](const void* b, int64_t i) { (*static_cast<const Body*>(b))(i); };
        body_ = &body;
        n_ = n;
        wanted_ = threads - 1;
        next_.store(0, std::memory_order_relaxed);
        gate_.store(OPEN, std::memory_order_release);
        loops_.fetch_add(1);
        loops_.notify_all();
        work();
        close();
    }

   private:
    static constexpr uint32_t OPEN = 1, INSIDE = 2;  // of gate_: open or not, helpers inside
    static constexpr int SPINS = 12000;              // some hundreds of microseconds
    static constexpr int PATIENCE = 200;             // then the core is offered to others

    void work() {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_;) call_(body_, i);
    }

    void close() {
        gate_.fetch_and(~OPEN);
        for (int waited = 0; gate_.load(std::memory_order_acquire); waited++)
            waited < PATIENCE ? pause_briefly() : std::this_thread::yield();
    }

    bool enter() {
        uint32_t gate = gate_.load(std::memory_order_acquire);
        while (gate & OPEN)
            if (gate_.compare_exchange_weak(gate, gate + INSIDE, std::memory_order_acq_rel))
                return true;
        return false;
    }

    void help(int number) {
        for (uint32_t seen = 0, now;; seen = now) {
            for (int i = 0; i < SPINS && loops_.load(std::memory_order_relaxed) == seen; i++)
                pause_briefly();
            loops_.wait(seen);
            now = loops_.load();  // before the work: a loop opened during it is not to be missed
            if (!enter()) continue;
            if (number < wanted_) work();
            gate_.fetch_sub(INSIDE, std::memory_order_release);
        }
    }

    std::mutex busy_;
    int helpers_ = 0;
    // the loop that runs; written before the gate opens, read only by those inside
    void (*call_)(const void*, int64_t) = nullptr;
    const void* body_ = nullptr;
    int64_t n_ = 0;
    int wanted_ = 0;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<uint32_t> gate_{0};
    alignas(64) std::atomic<uint32_t> loops_{0};  // counts loops; helpers wait for it to change
};

// One pool for the library; never destroyed, as helpers may outlive main.
inline Pool& pool() {
    static Pool* const only = new Pool;
    return *only;
}
