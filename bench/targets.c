/*
 * The processes that the benchmarks look at.
 *
 *     targets small
 *     targets private BYTES             touched private memory in base pages
 *     targets shared BYTES SHAPE        shared memory, all of it allocated, half of it not
 *                                       mapped here: the upper "half", every second 2 MiB
 *                                       "block", or every second "page"
 *     targets swapped BYTES SHAPE       shared memory on swap: the upper "half" of it, all in
 *                                       few "runs" of slots, or every page "scattered"
 *     targets sparse BYTES STRIDE       private reservation, one page touched per STRIDE
 *     targets reserved BYTES            private reservation, never touched
 *     targets spread BYTES STRIDE OUT   shared memory, one page touched per STRIDE; if OUT is 1,
 *                                       every second one of these is on swap
 *     targets many COUNT                COUNT mappings of 4 pages of one memfd, none mapped
 *     targets mappings COUNT KIND       COUNT mappings of 4 pages, one of them touched:
 *                                       "private", or each "shared" memory of its own
 *     targets sleepers COUNT            COUNT processes that sleep, each a program of its own
 *     targets libraries DIRECTORY FILES PROCESSES
 *                                       PROCESSES that map FILES of the directory, named by
 *                                       their numbers, as a loader maps shared libraries
 *
 * Prints one line of JSON when it is ready: its PID, those of the processes that hold what
 * it made if they are others, the range it made in each, and the pages of each class that
 * are true of it, of all processes together.  Then obeys lines on stdin, one line of JSON each:
 *
 *     watch    start over measuring the latency of mmap+munmap in a second thread
 *     worst    stop, and say the worst
 *
 * and ends when stdin does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES (2ul << 20)
#define MANY_PAGES 4
#define MOST_CHILDREN 10000
/* Of a library: headers, code, constants, relocated constants, data. */
#define LIBRARY_PARTS 5
#define PART_PAGES 16
#define WATCH_PAUSE_NS 20000
#define WATCH_BYTES 65536
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static size_t page_size_bytes;

static void die(const char *what)
{
	fprintf(stderr, "targets: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

/* ---- the memory -------------------------------------------------------------------- */

static char *reserve(size_t size, int flags)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	/* Base pages, whatever the machine prefers; fails where there are no huge ones. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	return memory;
}

static void touch(char *memory, size_t size)
{
	if (madvise(memory, size, MADV_POPULATE_WRITE) == 0)
		return;
	if (errno != EINVAL)
		die("MADV_POPULATE_WRITE");
	for (size_t at = 0; at < size; at += page_size_bytes)
		memory[at] = 1;
}

static void unmap_every_second(char *memory, size_t size, size_t step)
{
	for (size_t at = step; at < size; at += 2 * step)
		if (madvise(memory + at, step, MADV_DONTNEED))
			die("MADV_DONTNEED");
}

static pid_t children[MOST_CHILDREN];
static size_t child_count;

static void say_ready(const char *memory, size_t size, const char *pages)
{
	printf("{\"pid\": %d, \"start\": %llu, \"stop\": %llu, \"pages\": {%s}", getpid(),
	       (unsigned long long)(uintptr_t)memory,
	       (unsigned long long)(uintptr_t)memory + size, pages);
	for (size_t i = 0; i < child_count; i++)
		printf("%s%d", i ? ", " : ", \"pids\": [", children[i]);
	puts(child_count ? "]}" : "}");
	fflush(stdout);
}

static void make_private(size_t size)
{
	char *memory = reserve(size, MAP_PRIVATE), pages[64];

	touch(memory, size);
	snprintf(pages, sizeof(pages), "\"present\": %zu", size / page_size_bytes);
	say_ready(memory, size, pages);
}

static void make_shared(size_t size, const char *shape)
{
	char *memory = reserve(size, MAP_SHARED), pages[96];
	size_t half = size / page_size_bytes / 2, step = size / 2;

	if (!strcmp(shape, "block"))
		step = BLOCK_BYTES;
	else if (!strcmp(shape, "page"))
		step = page_size_bytes;
	touch(memory, size);
	unmap_every_second(memory, size, step);
	snprintf(pages, sizeof(pages), "\"present\": %zu, \"cached\": %zu", half, half);
	say_ready(memory, size, pages);
}

static void page_out(char *memory, size_t size)
{
	if (madvise(memory, size, MADV_PAGEOUT))
		die("MADV_PAGEOUT");
}

static size_t count_mapped(char *memory, size_t pages)
{
	uint64_t word;
	size_t mapped = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	for (size_t i = 0; i < pages; i++) {
		off_t at = ((uintptr_t)memory / page_size_bytes + i) * sizeof(word);

		if (pread(fd, &word, sizeof(word), at) != sizeof(word))
			die("pagemap");
		mapped += word >> 63;
	}
	close(fd);
	return mapped;
}

/* Page i of a scattered object goes out after page i - 40503: no two slots are neighbours. */
static void make_swapped(size_t size, const char *shape)
{
	char *memory = reserve(size, MAP_SHARED), *out = memory, pages[96];
	size_t count = size / page_size_bytes, half = !strcmp(shape, "half") ? count / 2 : 0;
	bool is_scattered = !strcmp(shape, "scattered");

	touch(memory, size);
	for (size_t i = 0; i < count; i++)
		memcpy(memory + i * page_size_bytes, &i, sizeof(i));
	out += half * page_size_bytes;
	if (!is_scattered)
		page_out(out, size - half * page_size_bytes);
	for (size_t i = 0; is_scattered && i < count; i++)
		page_out(out + i * 40503 % count * page_size_bytes, page_size_bytes);
	/* What was just written may be passed over at first. */
	for (int i = 0; i < 20 && count_mapped(out, count - half); i++)
		page_out(out, size - half * page_size_bytes);
	if (count_mapped(out, count - half))
		die("some pages stay");
	snprintf(pages, sizeof(pages), "\"swapped\": %zu", count - half);
	if (half)
		snprintf(pages, sizeof(pages), "\"present\": %zu, \"swapped\": %zu", half,
			 count - half);
	say_ready(memory, size, pages);
}

static void make_sparse(size_t size, size_t stride)
{
	char *memory = reserve(size, MAP_PRIVATE), pages[96];
	size_t touched = size / stride;

	for (size_t at = 0; at < size; at += stride)
		memory[at] = 1;
	snprintf(pages, sizeof(pages), "\"present\": %zu, \"none\": %zu", touched,
		 size / page_size_bytes - touched);
	say_ready(memory, size, pages);
}

static void make_reserved(size_t size)
{
	char *memory = reserve(size, MAP_PRIVATE), pages[64];

	snprintf(pages, sizeof(pages), "\"none\": %zu", size / page_size_bytes);
	say_ready(memory, size, pages);
}

static void page_out_every_second(char *memory, size_t size, size_t stride)
{
	size_t left = 1;

	/* What was just written may be passed over at first. */
	for (int i = 0; i < 20 && left; i++) {
		left = 0;
		for (size_t at = 0; at < size; at += 2 * stride)
			if (count_mapped(memory + at, 1)) {
				page_out(memory + at, page_size_bytes);
				left++;
			}
	}
	if (left)
		die("some pages stay");
}

static void make_spread(size_t size, size_t stride, bool is_out)
{
	char *memory = reserve(size, MAP_SHARED), pages[96];
	size_t touched = size / stride, out = is_out ? touched / 2 : 0;

	for (size_t at = 0; at < size; at += stride)
		memcpy(memory + at, &at, sizeof(at));
	if (is_out)
		page_out_every_second(memory, size, stride);
	snprintf(pages, sizeof(pages), "\"present\": %zu, \"swapped\": %zu, \"none\": %zu",
		 touched - out, out, size / page_size_bytes - touched);
	say_ready(memory, size, pages);
}

/* Private neighbours differ in what may be done to them, so that the kernel cannot merge them. */
static void make_mappings(size_t count, bool is_shared)
{
	size_t step = MANY_PAGES * page_size_bytes;
	char *memory = reserve(count * step, MAP_PRIVATE), pages[96];

	for (size_t i = 0; i < count; i++) {
		char *mapping = memory + i * step;

		if (is_shared && mmap(mapping, step, PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			die("mmap");
		*mapping = 1;
		if (!is_shared && i % 2 && mprotect(mapping, step, PROT_READ))
			die("mprotect");
	}
	snprintf(pages, sizeof(pages), "\"present\": %zu, \"none\": %zu", count,
		 count * (MANY_PAGES - 1));
	say_ready(memory, count * step, pages);
}

/* Neighbours show offsets that run backwards, so that the kernel cannot merge them. */
static void make_many(size_t count)
{
	size_t step = MANY_PAGES * page_size_bytes, size = count * step;
	char *memory = reserve(size, MAP_PRIVATE), *zeros = calloc(1, step), pages[64];
	int fd = memfd_create("many", MFD_CLOEXEC);

	if (fd < 0 || !zeros)
		die("memfd_create");
	for (size_t i = 0; i < count; i++) {
		off_t offset = (count - 1 - i) * step;

		if (pwrite(fd, zeros, step, offset) != (ssize_t)step)
			die("pwrite");
		if (mmap(memory + i * step, step, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED)
			die("mmap");
	}
	snprintf(pages, sizeof(pages), "\"cached\": %zu", count * MANY_PAGES);
	say_ready(memory, size, pages);
}

/* ---- other processes ----------------------------------------------------------------- */

/* Return 0 in the child, which ends with its parent. */
static pid_t start_child(void)
{
	pid_t pid;

	if (child_count == MOST_CHILDREN) {
		errno = EAGAIN;
		die("fork");
	}
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	else
		children[child_count++] = pid;
	return pid;
}

/* Wait until no child has the pipe: each has closed it, or executed its program. */
static void wait_for_children(const int pipe_fds[2])
{
	char failed;

	close(pipe_fds[1]);
	if (read(pipe_fds[0], &failed, 1) != 0)
		die("a child failed");
	close(pipe_fds[0]);
}

static void end_children(void)
{
	for (size_t i = 0; i < child_count; i++)
		kill(children[i], SIGKILL);
	for (size_t i = 0; i < child_count; i++)
		waitpid(children[i], NULL, 0);
}

static void make_sleepers(size_t count)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		die("pipe2");
	for (size_t i = 0; i < count; i++)
		if (start_child() == 0) {
			execlp("sleep", "sleep", "infinity", (char *)NULL);
			_exit(write(fds[1], "!", 1) != 1);
		}
	wait_for_children(fds);
	say_ready(NULL, 0, "");
}

/*
 * Headers and code are in use, constants are not; relocations are written once and then
 * closed to writing; half of the data is written.
 */
static void map_library(char *memory, int fd)
{
	size_t part = PART_PAGES * page_size_bytes;
	const int protections[LIBRARY_PARTS] = {
		PROT_READ, PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE,
		PROT_READ | PROT_WRITE,
	};

	for (int i = 0; i < LIBRARY_PARTS; i++)
		if (mmap(memory + i * part, part, protections[i], MAP_PRIVATE | MAP_FIXED, fd,
			 i * part) == MAP_FAILED)
			die("mmap");
	for (int i = 0; i < 2; i++)
		if (madvise(memory + i * part, part, MADV_POPULATE_READ))
			die("MADV_POPULATE_READ");
	for (size_t at = 3 * part; at < 4 * part + part / 2; at += page_size_bytes)
		memory[at] = 1;
	if (mprotect(memory + 3 * part, part, PROT_READ))
		die("mprotect");
}

static void map_libraries(char *memory, const char *directory, size_t files)
{
	char path[512];

	for (size_t i = 0; i < files; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/%zu", directory, i);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			die(path);
		map_library(memory + i * LIBRARY_PARTS * PART_PAGES * page_size_bytes, fd);
		close(fd);
	}
}

/* Reserved before the fork, so that all of them have the libraries at the same addresses. */
static void make_libraries(const char *directory, size_t files, size_t processes)
{
	size_t size = files * LIBRARY_PARTS * PART_PAGES * page_size_bytes;
	char *memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t all = files * processes * PART_PAGES;
	char pages[96];
	int fds[2];

	if (memory == MAP_FAILED || pipe2(fds, O_CLOEXEC))
		die("mmap, pipe2");
	for (size_t i = 0; i < processes; i++)
		if (start_child() == 0) {
			map_libraries(memory, directory, files);
			close(fds[0]);
			close(fds[1]);
			for (;;)
				pause();
		}
	wait_for_children(fds);
	snprintf(pages, sizeof(pages), "\"present\": %zu, \"cached\": %zu", all * 7 / 2,
		 all * 3 / 2);
	say_ready(memory, size, pages);
}

static size_t number(char **argv, int argc, int i)
{
	if (i >= argc) {
		fprintf(stderr, "targets: too few arguments\n");
		exit(2);
	}
	return strtoull(argv[i], NULL, 0);
}

static void make(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";

	if (!strcmp(kind, "small"))
		make_private(16 * page_size_bytes);
	else if (!strcmp(kind, "private"))
		make_private(number(argv, argc, 2));
	else if (!strcmp(kind, "shared") && argc > 3)
		make_shared(number(argv, argc, 2), argv[3]);
	else if (!strcmp(kind, "swapped") && argc > 3)
		make_swapped(number(argv, argc, 2), argv[3]);
	else if (!strcmp(kind, "sparse"))
		make_sparse(number(argv, argc, 2), number(argv, argc, 3));
	else if (!strcmp(kind, "reserved"))
		make_reserved(number(argv, argc, 2));
	else if (!strcmp(kind, "spread"))
		make_spread(number(argv, argc, 2), number(argv, argc, 3),
			    number(argv, argc, 4));
	else if (!strcmp(kind, "many"))
		make_many(number(argv, argc, 2));
	else if (!strcmp(kind, "mappings") && argc > 3)
		make_mappings(number(argv, argc, 2), !strcmp(argv[3], "shared"));
	else if (!strcmp(kind, "sleepers"))
		make_sleepers(number(argv, argc, 2));
	else if (!strcmp(kind, "libraries") && argc > 2)
		make_libraries(argv[2], number(argv, argc, 3), number(argv, argc, 4));
	else {
		fprintf(stderr, "targets: unknown kind '%s'\n", kind);
		exit(2);
	}
}

/* ---- the latency of its own mmap and munmap ------------------------------------------ */

static atomic_bool is_watching;
static uint64_t worst_ns, loops;

static void *watch(void *unused)
{
	struct timespec pause = { .tv_nsec = WATCH_PAUSE_NS };

	(void)unused;
	while (atomic_load(&is_watching)) {
		uint64_t began = now_ns(), took;
		void *memory = mmap(NULL, WATCH_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED || munmap(memory, WATCH_BYTES))
			die("mmap, munmap");
		took = now_ns() - began;
		worst_ns = took > worst_ns ? took : worst_ns;
		loops++;
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void obey(void)
{
	char line[64];
	pthread_t watcher;

	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "watch\n")) {
			worst_ns = loops = 0;
			atomic_store(&is_watching, true);
			if (pthread_create(&watcher, NULL, watch, NULL))
				die("pthread_create");
			puts("{}");
		} else if (!strcmp(line, "worst\n") && atomic_load(&is_watching)) {
			atomic_store(&is_watching, false);
			pthread_join(watcher, NULL);
			printf("{\"worst_ns\": %llu, \"loops\": %llu}\n",
			       (unsigned long long)worst_ns, (unsigned long long)loops);
		} else {
			puts("{\"error\": \"not a command\"}");
		}
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	page_size_bytes = sysconf(_SC_PAGESIZE);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	make(argc, argv);
	obey();
	end_children();
	return 0;
}
