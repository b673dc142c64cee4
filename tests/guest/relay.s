# A guest in one boot sector that passes numbers on: reads a 32-bit number (little endian) from COM1, writes a sector full of it to
# sector 2048 + number modulo 1024 of the first disk, then sends the number back through COM1. What is sent back is on the disk.

        .code16
        .text
        .globl  _start
        .set    BUFFER_SEGMENT, 0x1000
_start:
        ljmp    $0, $begin
begin:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movw    $BUFFER_SEGMENT, %ax
        movw    %ax, %es
        sti
        cld
next:
        movw    $4, %cx
1:      call    receive
        rorl    $8, %ebp                # the first byte ends up lowest
        andl    $0x00ffffff, %ebp
        movzbl  %al, %eax
        shll    $24, %eax
        orl     %eax, %ebp
        loop    1b

        movl    %ebp, %eax
        xorw    %di, %di
        movw    $128, %cx
        rep     stosl
        movl    %ebp, %eax
        andl    $1023, %eax
        addl    $2048, %eax
        movl    %eax, lba
2:      movw    $packet, %si
        movw    $0x4300, %ax
        movb    $0x80, %dl
        int     $0x13
        jc      2b

        movl    %ebp, %ebx
        movw    $4, %cx
3:      movb    %bl, %al
        call    send
        shrl    $8, %ebx
        loop    3b
        jmp     next

# The ports of COM1 themselves: the BIOS call gives up after a while, and may lose a byte then.
receive:
        movw    $0x3fd, %dx
4:      inb     %dx, %al
        testb   $1, %al
        jz      4b
        movw    $0x3f8, %dx
        inb     %dx, %al
        ret

send:
        pushw   %ax
        movw    $0x3fd, %dx
5:      inb     %dx, %al
        testb   $0x20, %al
        jz      5b
        popw    %ax
        movw    $0x3f8, %dx
        outb    %al, %dx
        ret

        .balign 4
packet: .byte   16, 0
        .word   1
        .word   0, BUFFER_SEGMENT
lba:    .long   2048, 0

        .org    510
        .byte   0x55, 0xaa
