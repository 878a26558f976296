// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the test VM: makes the host's files the root, runs the programs that /job names, says
 * how each ended, reboots (which ends QEMU).
 *
 * The root is the host's own, read-only over 9p, with a tmpfs on top that takes what is written: a
 * program finds here the libraries it has there, and what it does is gone with the VM.
 *
 * /job is a list of strings, each ended by NUL:
 *	how	"tty": the program has the console, and "pipe": ports stdout and stderr;
 *		"list": its output goes into the report
 * and then for each program
 *	name, timeout in seconds (0: none), directory, number of settings, settings,
 *	number of arguments, arguments
 * where a setting is NAME=VALUE for the environment, or /PATH=VALUE for a file that is set
 * before the program and set back after it.
 *
 * The report goes to the virtio port "report". Each line starts with a letter:
 *	K TEXT		a line of the kernel log, or of what kmemleak has found
 *	R kvm yes|no	the VM is up, and has a /dev/kvm or not
 *	S NAME		program starts
 *	O TEXT		a line of its output
 *	E NAME SECONDS exit N | signal N | timeout | error TEXT
 *	D		done: nothing follows
 * The kernel log of a program comes before its E line. Without D the VM died.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/kvm.h>

#define MAX_STRINGS 65536
#define MAX_SETTINGS 64

struct program {
	const char *name;
	int timeout;
	const char *directory;
	char **settings;
	int nr_settings;
	char **argv;
};

static FILE *report;
static int kmsg = -1;
static char **strings;
static size_t nr_strings, next_string;

static void __attribute__((noreturn)) leave(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* On the console, for want of anything better: the host sees a report without its last line. */
static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "init: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(args);
	leave();
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void mount_at(const char *source, const char *target, const char *type, const char *options)
{
	mkdir(target, 0755);
	if (mount(source, target, type, 0, options))
		die("mount %s on %s", type, target);
}

static void write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		die("write %s to %s", value, path);
	close(fd);
}

/* Returns a string to be freed, without the newline. */
static char *read_file(const char *path)
{
	char buffer[4096];
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY);
	if (fd < 0)
		die("open %s", path);
	n = read(fd, buffer, sizeof(buffer) - 1);
	if (n < 0)
		die("read %s", path);
	close(fd);
	buffer[n] = 0;
	buffer[strcspn(buffer, "\n")] = 0;
	return strdup(buffer);
}

static void mount_root(void)
{
	mount_at("proc", "/proc", "proc", NULL);
	mount_at("sys", "/sys", "sysfs", NULL);
	mount_at("host", "/host", "9p",
		 "trans=virtio,version=9p2000.L,cache=loose,msize=512000");
	mount_at("rw", "/rw", "tmpfs", NULL);
	mkdir("/rw/upper", 0755);
	mkdir("/rw/work", 0755);
	mount_at("root", "/root", "overlay", "lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work");

	mount_at("proc", "/root/proc", "proc", NULL);
	mount_at("sys", "/root/sys", "sysfs", NULL);
	mount_at("debug", "/root/sys/kernel/debug", "debugfs", NULL);
	mount_at("trace", "/root/sys/kernel/tracing", "tracefs", NULL);
	mount_at("cgroup", "/root/sys/fs/cgroup", "cgroup2", NULL);
	mount_at("dev", "/root/dev", "devtmpfs", NULL);
	mount_at("pts", "/root/dev/pts", "devpts", "ptmxmode=0666");
	mount_at("shm", "/root/dev/shm", "tmpfs", NULL);
	mount_at("huge", "/root/dev/hugepages", "hugetlbfs", NULL);
	mount_at("run", "/root/run", "tmpfs", NULL);
	if (chroot("/root") || chdir("/"))
		die("chroot");
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

/* Returns a descriptor of the virtio-serial port that the host has given this name. */
static int open_port(const char *name)
{
	struct dirent *entry;
	char path[512];
	char *port;
	DIR *dir;
	int fd;

	dir = opendir("/sys/class/virtio-ports");
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		port = read_file(path);
		if (!strcmp(port, name)) {
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_WRONLY | O_CLOEXEC);
			if (fd < 0)
				die("open %s", path);
			return fd;
		}
		free(port);
	}
	die("find virtio port %s", name);
}

static void read_job(void)
{
	FILE *job = fopen("/job", "r");
	char *string = NULL;
	size_t size = 0;

	strings = calloc(MAX_STRINGS, sizeof(*strings));
	if (!job || !strings)
		die("open /job");
	while (getdelim(&string, &size, 0, job) > 0) {
		if (nr_strings == MAX_STRINGS - 1)
			die("/job is too long");
		strings[nr_strings++] = strdup(string);
	}
	fclose(job);
	free(string);
}

static char *take_string(void)
{
	if (next_string == nr_strings)
		die("/job ends early");
	return strings[next_string++];
}

static bool take_program(struct program *program)
{
	int i, nr_args;

	if (next_string == nr_strings)
		return false;
	program->name = take_string();
	program->timeout = atoi(take_string());
	program->directory = take_string();
	program->nr_settings = atoi(take_string());
	if (program->nr_settings > MAX_SETTINGS)
		die("%s: too many settings", program->name);
	program->settings = &strings[next_string];
	for (i = 0; i < program->nr_settings; i++)
		take_string();
	nr_args = atoi(take_string());
	program->argv = calloc(nr_args + 1, sizeof(char *));
	for (i = 0; i < nr_args; i++)
		program->argv[i] = take_string();
	return true;
}

/* Pass on what the kernel has logged since the last call. */
static void report_kernel_log(void)
{
	char record[8192];
	char *text;
	ssize_t n;

	for (;;) {
		n = read(kmsg, record, sizeof(record) - 1);
		if (n < 0 && errno == EPIPE) {
			fprintf(report, "K kernel log overrun\n");
			continue;
		}
		if (n <= 0)
			break;
		record[n] = 0;
		text = strchr(record, ';');
		if (!text)
			continue;
		text[strcspn(text, "\n")] = 0;
		fprintf(report, "K %s\n", text + 1);
	}
}

/*
 * Have kmemleak, where the kernel has it, look for memory that nothing points to any more,
 * when all programs are through: the log of a program of that name is what it finds. It
 * looks twice, to tell such memory from what is just being moved around, and passes over
 * what is younger than 5 seconds. To look at all memory takes longer than many a test.
 */
static void report_leaks(void)
{
	double start = seconds();
	char *line = NULL;
	size_t size = 0;
	FILE *leaks;

	if (strstr(read_file("/proc/cmdline"), "kmemleak=off"))
		return;
	leaks = fopen("/sys/kernel/debug/kmemleak", "r+e");
	if (!leaks)
		return;
	fprintf(report, "S kmemleak\n");
	if (write(fileno(leaks), "scan", 4) < 0)
		fprintf(report, "K unreferenced objects cannot be found: %s\n", strerror(errno));
	while (seconds() < start + 5.1)
		usleep(10000);
	write(fileno(leaks), "scan", 4);
	while (getline(&line, &size, leaks) > 0)
		fprintf(report, "K %s", line);
	fprintf(report, "E kmemleak %.1f exit 0\n", seconds() - start);
	free(line);
	fclose(leaks);
}

static void exec_program(struct program *program, const char *how, int output)
{
	char *setting;
	int i, fd;

	setsid();
	if (!strcmp(how, "tty")) {
		fd = open("/dev/hvc0", O_RDWR);
		if (fd < 0)
			_exit(127);
		ioctl(fd, TIOCSCTTY, 0);
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
		close(fd);
	} else {
		dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
		dup2(!strcmp(how, "pipe") ? open_port("stdout") : output, 1);
		dup2(!strcmp(how, "pipe") ? open_port("stderr") : output, 2);
	}
	for (i = 0; i < program->nr_settings; i++) {
		setting = program->settings[i];
		if (setting[0] != '/')
			putenv(setting);
	}
	if (chdir(program->directory))
		fprintf(stderr, "cannot go to %s: %s\n", program->directory, strerror(errno));
	execvp(program->argv[0], program->argv);
	fprintf(stderr, "cannot run %s: %s\n", program->argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Frame the output by lines; what is left without a newline waits in the buffer, unless last. */
static void report_output(int fd, bool last)
{
	static char buffer[65536];
	static size_t used;
	char *start = buffer, *end;
	ssize_t n;

	while ((n = read(fd, buffer + used, sizeof(buffer) - used)) > 0 || (last && used)) {
		if (n > 0)
			used += n;
		start = buffer;
		while ((end = memchr(start, '\n', buffer + used - start))) {
			fprintf(report, "O %.*s\n", (int)(end - start), start);
			start = end + 1;
		}
		used -= start - buffer;
		if (used && (used == sizeof(buffer) || (last && n <= 0))) {
			fprintf(report, "O %.*s\n", (int)used, start);
			used = 0;
		}
		memmove(buffer, start, used);
	}
}

/* Wait for the child, and pass on its output meanwhile. Returns false if it had to be killed. */
static bool wait_for(pid_t child, int timeout, int output, int *status)
{
	double end = seconds() + timeout;
	struct pollfd poll_output = { .fd = output, .events = POLLIN };
	bool in_time = true;
	pid_t pid;

	for (;;) {
		pid = waitpid(-1, status, WNOHANG);
		if (pid == child)
			break;
		if (pid > 0)
			continue;
		if (timeout && in_time && seconds() > end) {
			in_time = false;
			/* What is it waiting for? The kernel log will say. */
			write_file("/proc/sysrq-trigger", "w");
			write_file("/proc/sysrq-trigger", "l");
			kill(-1, SIGKILL);
			end = seconds() + 20;
		}
		if (!in_time && seconds() > end)
			die("a killed program does not die");
		poll(&poll_output, 1, 20);
		if (poll_output.revents & POLLIN)
			report_output(output, false);
		else if (poll_output.revents)
			usleep(20000);
	}
	/* Whatever it has left behind. */
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	return in_time;
}

static void run(struct program *program, const char *how)
{
	char *path, *value, *old[MAX_SETTINGS] = {};
	int i, status, output[2] = { -1, -1 };
	bool in_time;
	double start, took;
	pid_t child;

	fprintf(report, "S %s\n", program->name);
	for (i = 0; i < program->nr_settings; i++) {
		path = program->settings[i];
		value = strchr(path, '=');
		if (path[0] != '/' || !value)
			continue;
		path = strndup(path, value - path);
		old[i] = read_file(path);
		write_file(path, value + 1);
		free(path);
	}
	if (!strcmp(how, "list") && pipe2(output, O_CLOEXEC | O_NONBLOCK))
		die("pipe");
	if (output[1] >= 0)
		fcntl(output[1], F_SETFL, 0);

	start = seconds();
	child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		exec_program(program, how, output[1]);
	if (output[1] >= 0)
		close(output[1]);
	in_time = wait_for(child, program->timeout, output[0], &status);
	took = seconds() - start;
	if (output[0] >= 0) {
		report_output(output[0], true);
		close(output[0]);
	}
	for (i = 0; i < program->nr_settings; i++) {
		if (!old[i])
			continue;
		path = program->settings[i];
		path = strndup(path, strchr(path, '=') - path);
		write_file(path, old[i]);
		free(path);
		free(old[i]);
	}
	report_kernel_log();
	fprintf(report, "E %s %.1f ", program->name, took);
	if (!in_time)
		fprintf(report, "timeout\n");
	else if (WIFEXITED(status))
		fprintf(report, "exit %d\n", WEXITSTATUS(status));
	else
		fprintf(report, "signal %d\n", WTERMSIG(status));
}

/* The size of the terminal that QEMU runs on comes with the settings. */
static void set_up_tty(struct program *program)
{
	struct winsize size = {};
	int i, fd;

	for (i = 0; i < program->nr_settings; i++) {
		if (!strncmp(program->settings[i], "LINES=", 6))
			size.ws_row = atoi(program->settings[i] + 6);
		if (!strncmp(program->settings[i], "COLUMNS=", 8))
			size.ws_col = atoi(program->settings[i] + 8);
	}
	fd = open("/dev/hvc0", O_RDWR | O_NOCTTY);
	if (fd < 0)
		die("open /dev/hvc0");
	ioctl(fd, TIOCSWINSZ, &size);
	close(fd);
}

static void drain_tty(void)
{
	int fd = open("/dev/hvc0", O_RDWR | O_NOCTTY);

	if (fd >= 0) {
		tcdrain(fd);
		close(fd);
	}
}

/*
 * Keep a VM for as long as this one lives. Without it each test that comes and goes has the
 * kernel patch its scheduler (preempt_notifier_key), while another CPU may just be translating the
 * code in question: QEMU 7.2 would keep the translation of what was there before. Then a vCPU is
 * scheduled in and KVM does not hear of it. On arm64 a vCPU that ran was none to KVM once, and
 * nothing else is known that explains it.
 */
static void keep_a_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm >= 0)
		ioctl(kvm, KVM_CREATE_VM, 0);
}

int main(void)
{
	struct program program;
	const char *how;

	if (getpid() != 1)
		return 1;
	mount_at("dev", "/dev", "devtmpfs", NULL);
	dup2(open("/dev/console", O_RDWR), 2);
	read_job();
	mount_root();
	clearenv();
	putenv("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	putenv("HOME=/root");

	report = fdopen(open_port("report"), "w");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (!report || kmsg < 0)
		die("open /dev/kmsg");
	setvbuf(report, NULL, _IOLBF, 0);
	fprintf(report, "R kvm %s\n", access("/dev/kvm", F_OK) ? "no" : "yes");
	report_kernel_log();
	keep_a_vm();

	how = take_string();
	while (take_program(&program)) {
		if (!strcmp(how, "tty"))
			set_up_tty(&program);
		run(&program, how);
		free(program.argv);
	}
	if (!strcmp(how, "tty"))
		drain_tty();
	if (!strcmp(how, "list"))
		report_leaks();
	fprintf(report, "D\n");
	fclose(report);
	leave();
}
