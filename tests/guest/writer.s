# A guest in one boot sector: writes a counter to pseudo-random places of two disks in lock step, through the BIOS (int 13h).
#
# Record number N is 4096 bytes, every 32-bit word of it N. It goes to sector 2048 + 56 * slot of the first disk, then to the same
# place of the second (if there is one), where slot is the upper 11 bits of N * 2654435761 modulo 2^32. The upper 12 bits of N count
# the starts of the guest (kept in sector 1 of the first disk), so N only ever grows. Smallest disk: 64 MiB.
#
# COM1 gets "kvmms writer start" and then, every 256 records, "N xxxxxxxx" (hexadecimal); "E xx" is a failed write with the
# status of the BIOS; the write is tried again.
#
# It writes as fast as its processor lets it, which takes all of one of the host's. Assembled with PACE, the frequency of a clock, it
# halts after each write until that clock ticks, its records are 1024 bytes long, and it tells of every 16.

        .code16
        .text
        .globl  _start
        .set    BUFFER_SEGMENT, 0x1000
.ifdef PACE
        .set    RECORD_SECTORS, 2
        .set    RECORDS_TOLD, 16
.else
        .set    RECORD_SECTORS, 8
        .set    RECORDS_TOLD, 256
.endif

        .macro  rest
.ifdef PACE
        hlt
.endif
        .endm

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
        xorw    %dx, %dx                # COM1, 9600 8N1
        movw    $0x00e3, %ax
        int     $0x14
        movw    $hello, %si
        call    print

.ifdef PACE
        # The BIOS would look after all its devices at each tick.
        movw    $tick, 8 * 4
        movw    $0, 8 * 4 + 2
        movb    $0x34, %al              # timer 0, low byte and high byte, rate generator
        outb    %al, $0x43
        movw    $1193182 / PACE, %ax
        outb    %al, $0x40
        movb    %ah, %al
        outb    %al, $0x40
.endif

        movl    $1, lba                 # one more start
        movw    $1, sectors
        movb    $0x42, %ah
        call    first_disk
        movl    %es:0, %ebp
        incl    %ebp
        movl    %ebp, %es:0
        movb    $0x43, %ah
        call    first_disk
        shll    $20, %ebp               # ebp: the number
        movw    $RECORD_SECTORS, sectors

next:
        incl    %ebp
        movl    %ebp, %eax
        xorw    %di, %di
        movw    $RECORD_SECTORS * 128, %cx
        rep     stosl
        imull   $2654435761, %ebp, %eax
        shrl    $21, %eax
        imull   $56, %eax, %eax
        addl    $2048, %eax
        movl    %eax, lba
        movb    $0x43, %ah
        call    first_disk
        rest
        cmpb    $2, 0x475               # the BIOS counts the hard disks here
        jb      written
        movb    $0x43, %ah
        movb    $0x81, %dl
        call    disk
        rest
written:
        testl   $RECORDS_TOLD - 1, %ebp
        jnz     next
        movb    $'N', %al
        movl    %ebp, %ebx
        movw    $8, %cx
        call    report
        jmp     next

# AH: 42h read, 43h write; DL: the drive. Does not come back before it worked.
first_disk:
        movb    $0x80, %dl
disk:
        movb    %ah, operation
1:      movb    operation, %ah
        xorb    %al, %al
        movw    $packet, %si
        pushw   %dx
        int     $0x13
        popw    %dx
        jnc     2f
        pushw   %dx
        xorl    %ebx, %ebx
        movb    %ah, %bl
        shll    $24, %ebx
        movb    $'E', %al
        movw    $2, %cx
        call    report
        popw    %dx
        jmp     1b
2:      ret

# AL and the CX upper hexadecimal digits of EBX, then a new line.
report:
        call    put
        movb    $' ', %al
        call    put
3:      roll    $4, %ebx
        movb    %bl, %al
        andb    $0x0f, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     4f
        addb    $('a' - '9' - 1), %al
4:      call    put
        loop    3b
        movw    $newline, %si
print:
        lodsb
        testb   %al, %al
        jz      5f
        call    put
        jmp     print
5:      ret

put:
        pushw   %dx
        movb    $1, %ah
        xorw    %dx, %dx
        int     $0x14
        popw    %dx
        ret

.ifdef PACE
tick:
        pushw   %ax
        movb    $0x20, %al              # end of interrupt
        outb    %al, $0x20
        popw    %ax
        iretw
.endif

hello:  .ascii  "kvmms writer start"
newline:
        .asciz  "\r\n"
operation:
        .byte   0
        .balign 4
packet: .byte   16, 0
sectors:
        .word   1
        .word   0, BUFFER_SEGMENT
lba:    .long   1, 0

        .org    510
        .byte   0x55, 0xaa
